"""What the points of a sweep say: the best, what cannot be told from it, front, sensitivity.

The simulator's known error, from a scorecard of the base deployment, bounds what is decided:
a difference smaller than it, or an SLO nearer than it, is undecided. Known error is the far
end of the error's 95 % interval, so that an error of zero by luck decides nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from validation.scorecard import Scorecard

Row = Mapping[str, Any]
EXACT = ("gpus", "cost_per_hour", "memory_gb")  # of the deployment, not of the simulation
OF_THROUGHPUT = ("tokens_per_s", "tokens_per_s_per_gpu", "cost_per_million_tokens")
MEETS, FAILS, UNDECIDED = "meets", "fails", "undecided"
BINS = 5  # of an axis whose values have few points each


@dataclass(frozen=True, slots=True)
class KnownError:
    """Relative errors of the base's simulation by statistic (``ttft.p99``); what was measured."""

    source: str
    by_statistic: dict[str, float]
    measured: dict[str, float] = field(default_factory=dict)

    def of(self, column: str, slos: Sequence[str] = ()) -> float | None:
        """Error of a column of the results, as a fraction; None if it is not known.

        Goodput and capacity hang on latencies: the largest error of the SLOs' statistics.
        """
        if column in EXACT:
            return 0.0
        if column in OF_THROUGHPUT:
            return self.by_statistic.get("throughput.mean")
        if column.endswith("_s") and "_" in column.removesuffix("_s"):
            return self.by_statistic.get(column.removesuffix("_s").replace("_", "."))
        known = [self.by_statistic[name] for name in slos if name in self.by_statistic]
        return max(known) if known and len(known) == len(slos) else None


def known_error(card: Scorecard, source: str) -> KnownError:
    """The known error that a scorecard of the base deployment states."""
    errors, measured = {}, {}
    for metric, found in card.metrics.items():
        for name, s in found.statistics.items():
            measured[f"{metric}.{name}"] = s.measured
            if s.error is None:
                continue
            ends = [abs(end) for end in s.ci or () if end is not None]
            errors[f"{metric}.{name}"] = max([abs(s.error), *ends])
    return KnownError(source, errors, measured)


@dataclass(frozen=True, slots=True)
class Effect:
    """What one axis does to the objective.

    ``alone`` is how far the objective moves (largest - smallest over mean) when only this
    axis does, mean over the ``groups`` of points equal in all others; None without such.
    ``share`` is the share of the objective's variance between the axis' levels. ``levels``
    are (value, points, mean objective).
    """

    axis: str
    alone: float | None
    groups: int
    share: float
    levels: list[tuple[str, int, float]]
    undecided: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The answer of a sweep; points are positions in ``rows``.

    ``certain`` is the best that meets the SLOs for all the simulator may err; ``like_best``
    cannot be told from the best by the objective, or might meet the SLOs and
    be better. ``front`` is not beaten by any point in all of ``front_columns``.
    """

    summary: dict[str, Any]
    rows: list[Row]
    known: KnownError | None
    feasible: list[int]
    slo_states: dict[int, str]
    best: int | None
    certain: int | None
    like_best: list[int]
    front_columns: list[str]
    front: list[int]
    effects: list[Effect]
    reasons: dict[str, list[int]] = field(default_factory=dict)

    @property
    def objective_error(self) -> float | None:
        """Known error of the objective."""
        if self.known is None:
            return None
        return self.known.of(objective_column(self.summary), list(self.summary["slos"]))


def objective_column(summary: Mapping[str, Any]) -> str:
    """The column the objective is taken from."""
    name: str = summary["objective"]["name"]
    return f"{name.replace('.', '_')}_s" if "." in name else name


def analyse(summary: dict[str, Any], rows: list[Row], known: KnownError | None) -> Found:
    """Rank the points of a sweep."""
    feasible = [i for i, r in enumerate(rows) if r["status"] == "ok"]
    states = {i: slo_state(rows[i], summary["slos"], known) for i in feasible}
    ranked = [i for i in feasible if rows[i].get("objective") is not None]
    ranked.sort(key=lambda i: (-_gain(summary, rows[i]), i))
    meeting = [i for i in ranked if rows[i].get("meets_slos") in (True, None)]
    best = meeting[0] if meeting else None
    error = None
    if known is not None:
        error = known.of(objective_column(summary), list(summary["slos"]))
    columns = _front_columns(summary, [rows[i] for i in feasible])
    effects = [_effect(summary, axis, rows, ranked, error) for axis in summary["axes"]]
    reasons: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["status"] != "ok":
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(i)
    return Found(
        summary,
        rows,
        known,
        feasible,
        states,
        best,
        next((i for i in meeting if states[i] == MEETS), None),
        [] if best is None else _like(summary, rows, ranked, states, best, error),
        columns,
        _front(summary, rows, feasible, columns),
        [e for e in effects if len(e.levels) > 1],
        reasons,
    )


def slo_state(row: Row, slos: Mapping[str, float], known: KnownError | None) -> str:
    """Whether a point meets the SLOs for all the simulator may err."""
    states = []
    for name, limit in slos.items():
        column = f"{name.replace('.', '_')}_s"
        value = row.get(column)
        error = (known.of(column) if known else 0.0) or 0.0
        if value is None or value * (1 - error) > limit:
            states.append(FAILS)
        else:
            states.append(MEETS if value * (1 + error) <= limit else UNDECIDED)
    return next((s for s in (FAILS, UNDECIDED) if s in states), MEETS)


def _gain(summary: Mapping[str, Any], row: Row) -> float:
    value: float = row["objective"]
    return value if summary["objective"]["more_is_better"] else -value


def _like(
    summary: Mapping[str, Any], rows: Sequence[Row], ranked: Sequence[int],
    states: Mapping[int, str], best: int, error: float | None,
) -> list[int]:  # fmt: skip
    top = rows[best]["objective"]
    found = []
    for i in ranked:
        value = rows[i]["objective"]
        near = error is not None and abs(value - top) <= error * abs(top)
        better = _gain(summary, rows[i]) >= _gain(summary, rows[best])
        if i != best and (value == top or near or better) and states[i] != FAILS:
            found.append(i)
    return found


def _front_columns(summary: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    """What points are traded off by: cost or GPUs, the objective, what SLOs limit."""
    slos = [f"{name.replace('.', '_')}_s" for name in summary["slos"]]
    wanted = ["cost_per_hour" if summary["prices"] else "gpus", objective_column(summary), *slos]
    wanted = list(dict.fromkeys(wanted))
    if not slos:
        wanted += [c for c in ("e2e_mean_s",) if c not in wanted]
    varied = [c for c in wanted if len({r.get(c) for r in rows} - {None}) > 1]
    return varied if len(varied) > 1 else wanted[:2]


def _front(
    summary: Mapping[str, Any], rows: Sequence[Row], points: Sequence[int], columns: Sequence[str]
) -> list[int]:
    """Points that no other beats or equals in all columns while beating it in one."""
    kept = [i for i in points if all(rows[i].get(c) is not None for c in columns)]
    if not kept:
        return []
    values = np.array([[rows[i][c] for c in columns] for i in kept], float)
    more = summary["objective"]["more_is_better"]
    for k, c in enumerate(columns):
        if c == objective_column(summary) and more:
            values[:, k] *= -1
    front = []
    for k, i in enumerate(kept):
        no_worse = (values <= values[k]).all(axis=1)
        if not (no_worse & (values < values[k]).any(axis=1)).any():
            front.append(i)
    first = columns[0]
    return sorted(front, key=lambda i: (rows[i][first], i))


def _effect(
    summary: Mapping[str, Any], axis: str, rows: Sequence[Row], points: Sequence[int],
    error: float | None,
) -> Effect:  # fmt: skip
    others = [a for a in summary["axes"] if a != axis]
    groups: dict[str, dict[str, float]] = {}
    for i in points:
        rest = json.dumps([rows[i].get(a) for a in others])
        groups.setdefault(rest, {})[json.dumps(rows[i].get(axis))] = rows[i]["objective"]
    moves = [
        (max(g.values()) - min(g.values())) / abs(float(np.mean(list(g.values()))))
        for g in groups.values()
        if len(g) > 1 and np.mean(list(g.values()))
    ]
    alone = float(np.mean(moves)) if moves else None
    levels = _levels(axis, rows, points)
    values = np.array([rows[i]["objective"] for i in points], float)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    between = sum(len(v) * (float(np.mean(v)) - values.mean()) ** 2 for v in levels.values())
    return Effect(
        axis,
        alone,
        len(moves),
        between / total if total else 0.0,
        [(name, len(v), float(np.mean(v))) for name, v in levels.items()],
        error is not None and alone is not None and alone <= error,
    )


def _levels(axis: str, rows: Sequence[Row], points: Sequence[int]) -> dict[str, list[float]]:
    """Objectives by the value of an axis, or by which of ``BINS`` ranges it lies in."""
    values = [rows[i].get(axis) for i in points]
    distinct = sorted({v for v in values if v is not None}, key=lambda v: (str(type(v)), v))
    numeric = all(isinstance(v, int | float) for v in distinct)
    if numeric and len(distinct) > BINS and len(points) < len(distinct) * 3:
        edges = np.quantile(np.array(distinct, float), np.linspace(0, 1, BINS + 1))
        names = [f"{a:.4g} to {b:.4g}" for a, b in itertools.pairwise(edges)]
        place = np.searchsorted(edges[1:-1], np.array([v or 0 for v in values], float))
        labels = [names[int(p)] for p in place]
    else:
        names = [_text(v) for v in distinct] + (["-"] if None in values else [])
        labels = ["-" if v is None else _text(v) for v in values]
    found: dict[str, list[float]] = {name: [] for name in names}
    for i, label in zip(points, labels, strict=True):
        found[label].append(rows[i]["objective"])
    return {name: v for name, v in found.items() if v}


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
