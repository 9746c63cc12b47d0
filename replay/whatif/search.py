"""Settings chosen by what was found so far: optuna's TPE sampler under the SLOs.

Points are asked for in batches of a fixed size and told in their order, so that a search is
the same in any number of processes, and again after it was killed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from replay.whatif.base import Settings
from replay.whatif.points import Axis, axes_of
from replay.whatif.spec import Range, Sweep, slo_column
from traces.errors import ConfigError

Row = dict[str, Any]
FAR = 1e9  # a violation beyond any SLO's: the point cannot be served at all


def search(
    sweep: Sweep, where: str, evaluate: Callable[[Sequence[Settings]], Sequence[Row]]
) -> None:
    """Give ``evaluate`` batches of settings until ``sweep.search.points`` were asked for.

    It returns their rows, in order. Raises ConfigError if optuna is missing.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError:
        raise ConfigError(
            f"{where}: search: optuna is not installed: pip install 'frontier-replay[search]'"
        ) from None
    wanted = sweep.search
    assert wanted is not None
    grids = [axes_of(grid, where) for grid in sweep.grids if grid]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    more = sweep.objective_words()["more_is_better"]
    sampler = optuna.samplers.TPESampler(seed=wanted.seed)
    study = optuna.create_study(direction="maximize" if more else "minimize", sampler=sampler)
    asked = 0
    while asked < wanted.points:
        trials = [study.ask() for _ in range(min(wanted.batch, wanted.points - asked))]
        asked += len(trials)
        rows = evaluate([_suggested(trial, grids) for trial in trials])
        for trial, row in zip(trials, rows, strict=True):
            value = row.get("objective")
            trial.set_constraint("SLOs", _violation(row, sweep.slos))
            study.tell(trial, 0.0 if value is None else value)


def _suggested(trial: Any, grids: Sequence[dict[str, Axis]]) -> Settings:
    """The settings of a trial; each grid has parameters of its own."""
    which = trial.suggest_int("grid", 0, len(grids) - 1) if len(grids) > 1 else 0
    return {key: _suggest(trial, f"{which}.{key}", axis) for key, axis in grids[which].items()}


def _suggest(trial: Any, name: str, axis: Axis) -> Any:
    if isinstance(axis, Range):
        suggest = trial.suggest_int if axis.whole else trial.suggest_float
        return suggest(name, axis.low, axis.high, log=axis.log)
    return axis[trial.suggest_categorical(name, tuple(range(len(axis))))]


def _violation(row: Row, slos: dict[str, float]) -> float:
    """By how much the SLOs are missed, as fractions added up; 0 or less if they are met."""
    if row.get("objective") is None:
        return FAR
    missed = 0.0
    for name, limit in slos.items():
        value = row.get(slo_column(name))
        missed += FAR if value is None else max(0.0, value / limit - 1)
    return missed
