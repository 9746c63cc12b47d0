"""Accuracy of the operator models on rows held out: fitted on the rest, key by key.

Keys (device, node, engine, engine version, backend, dtype, timing) never mix: a held-out row
is predicted from rows of its own key, and is refused where those are too few to fit. An error
is |predicted / measured - 1|, a fraction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.operators import OPERATORS, Library, fit_library, kept_library, save_library
from simulator.operators.library import LEAST_ROWS, groups_of
from traces.bundle import content_hash
from traces.check import table_faults
from traces.errors import ConfigError, TraceError, nearest
from traces.schema import KERNELS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of one family on its held-out rows; all but the counts are fractions.

    ``n`` rows were predicted, ``extrapolated`` is the share of them outside what was fitted;
    ``refused`` rows, of keys with too few rows left, are in none of the figures.
    """

    n: int
    mape: float
    p50: float
    p95: float
    within_6: float
    within_10: float
    extrapolated: float
    refused: int


def score_of(predicted: Floats, measured: Floats, extrapolated: Bools) -> Score:
    """Errors of predictions ``(n,)``, seconds; NaN is a refusal.

    >>> score = score_of(np.array([1.0, 2.2, np.nan]), np.array([1.0, 2.0, 3.0]), np.zeros(3, bool))
    >>> score.n, round(score.mape, 3), score.within_6, score.refused
    (2, 0.05, 0.5, 1)
    """
    answered = ~np.isnan(predicted)
    if not answered.any():
        none = float("nan")
        return Score(0, none, none, none, none, none, none, len(predicted))
    error = np.abs(predicted[answered] / measured[answered] - 1)
    return Score(
        int(answered.sum()),
        float(error.mean()),
        float(np.quantile(error, 0.5)),
        float(np.quantile(error, 0.95)),
        float((error <= 0.06).mean()),
        float((error <= 0.10).mean()),
        float(extrapolated[answered].mean()),
        int((~answered).sum()),
    )


def read_kernels(path: Path) -> pd.DataFrame:
    """A ``kernels.parquet``, or the one of a profile directory. Raises TraceError."""
    file = path / KERNELS.file if path.is_dir() else path
    try:
        data = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise TraceError(f"{file}: not readable as a table of kernels: {what}") from None
    if faults := table_faults(KERNELS, data, str(file)):
        raise TraceError(faults)
    rows: pd.DataFrame = data.to_pandas()
    idle = np.flatnonzero(rows["duration_s"] <= 0)
    if len(idle):
        raise TraceError(f"{file}: row {idle[0]}: duration_s must be above 0")
    return rows


def fit_profile_operators(
    profile: Path, *, workers: int | None = None, progress: Say = lambda _: None
) -> Library:
    """Fit the kernels of a profile and write the models beside them. Raises TraceError."""
    library = fit_library(read_kernels(profile), workers=workers, progress=progress)
    library.fitted_on = {"kernels": content_hash(profile / KERNELS.file)}
    save_library(library, profile)
    return library


def profile_operators(profile: Path, *, progress: Say = lambda _: None) -> Library:
    """The models kept in a profile, fitted now (and not kept) if there are none of its kernels.

    Raises TraceError if there are no kernels.
    """
    rows = read_kernels(profile)
    kept = kept_library(profile, content_hash(profile / KERNELS.file))
    return kept or fit_library(rows, progress=progress)


def score(
    kernels: pd.DataFrame,
    holdout: str,
    progress: Say = lambda _: None,
    *,
    workers: int | None = None,
) -> dict[str, Score]:
    """Score every family that has held-out rows; ``holdout`` is a pandas query.

    Only keys with held-out rows are fitted; a family that is left nothing to be fitted to has
    all its rows refused. Raises ConfigError for an expression that cannot be used, that holds
    out nothing, or that leaves no family anything.
    """
    held = held_out(kernels, holdout)
    known, asked = split(kernels, held, progress)
    library = fit_library(known, workers=workers, progress=progress)
    progress(f"predicting {len(asked):,} rows held out")
    found = library.predict(asked)
    measured = asked["duration_s"].to_numpy(np.float64)
    operator = asked["operator"].to_numpy()
    scores = {}
    for name in sorted(set(operator)):
        own = operator == name
        scores[name] = score_of(found.seconds[own], measured[own], found.extrapolated[own])
    return scores


def held_out(kernels: pd.DataFrame, holdout: str) -> Bools:
    """Rows that a pandas query chooses, ``(n,)``. Raises ConfigError if it chooses none."""
    frame = kernels.reset_index(drop=True)
    try:
        chosen = frame.query(holdout)
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        hint = nearest(name, frame.columns)
        raise ConfigError(f"--holdout: unknown column {name!r}{hint}") from None
    except Exception as error:  # pandas raises many kinds at what a user may write
        what = shorten(str(error), 200)  # it may list the values of all rows
        raise ConfigError(f"--holdout {holdout!r}: not a pandas query: {what}") from None
    held = np.zeros(len(frame), bool)
    held[chosen.index] = True
    if not held.any():
        raise ConfigError(f"--holdout {holdout!r}: holds out no row")
    return held


def split(
    kernels: pd.DataFrame, held: Bools, progress: Say = lambda _: None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows to fit, of keys with held-out rows only, and rows to predict.

    Says of which families nothing can be fitted; raises ConfigError if that is all of them.
    """
    operators = kernels["operator"].to_numpy()
    for name in sorted(set(operators[held]) - set(OPERATORS)):
        progress(f"{name}: no model of this family, not scored")
    modelled = kernels[np.isin(operators, list(OPERATORS))].reset_index(drop=True)
    held = held[np.isin(operators, list(OPERATORS))]
    operators = modelled["operator"].to_numpy()
    if not held.any():
        raise ConfigError("--holdout: no row of a family that has a model")
    names = sorted(set(operators[held]))
    found = [_unfittable(n, modelled[operators == n], held[operators == n]) for n in names]
    reasons = [f"--holdout: {reason}" for reason in found if reason]
    if len(reasons) == len(names):
        raise ConfigError(reasons[0])
    for reason in reasons:
        progress(reason)
    wanted = np.concatenate([g.rows for g in groups_of(modelled) if held[g.rows].any()])
    return modelled.iloc[wanted[~held[wanted]]], modelled.iloc[wanted[held[wanted]]]


def _unfittable(operator: str, rows: pd.DataFrame, held: Bools) -> str:
    """Why no held-out row of a family can be predicted; empty if some can."""
    if held.all():
        return f"holds out every {operator} row, none is left to fit"
    asked, left = set(rows["timing"][held]), set(rows["timing"][~held])
    if not asked & left:
        return (
            f"the {operator} rows held out are timed {' and '.join(sorted(asked))}, "
            f"those left {' and '.join(sorted(left))}; the two never mix in a fit"
        )
    keys = [held[group.rows] for group in groups_of(rows)]
    if not any(own.any() and (~own).sum() >= LEAST_ROWS for own in keys):
        return f"too few {operator} rows are left of any key to fit"
    return ""
