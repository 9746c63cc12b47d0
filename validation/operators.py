"""Accuracy of the operator models on rows held out: fitted on the rest, key by key.

Keys (device, node, engine, engine version, backend, dtype, timing) never mix: a held-out row
is predicted from rows of its own key, and is refused where those are too few to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators import KEYS, OPERATORS, Device, family_named
from simulator.operators.model import fit_operator
from traces.errors import ConfigError, TraceError, nearest

Floats = npt.NDArray[np.float64]
LEAST_ROWS = 5  # a key with fewer rows left is not fitted
KERNELS = "kernels.parquet"


@dataclass(frozen=True, slots=True)
class Score:
    """Errors of one family on its held-out rows, fractions of the measured time.

    ``within_6`` and ``within_10`` are the shares of predicted rows within 6 and 10 %,
    ``extrapolated`` the share outside what was fitted; ``refused`` rows, of keys with too few
    rows left, were not predicted and are in none of the figures.
    """

    n: int
    mape: float
    p50: float
    p95: float
    within_6: float
    within_10: float
    extrapolated: float
    refused: int


def read_kernels(path: Path) -> pd.DataFrame:
    """A ``kernels.parquet``, or the one of a profile directory. Raises TraceError."""
    file = path / KERNELS if path.is_dir() else path
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise TraceError(f"{file}: not readable as a table of kernels: {what}") from None


def score(
    kernels: pd.DataFrame, holdout: str, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Score]:
    """Score every family that has held-out rows; ``holdout`` is a pandas query.

    Raises ConfigError for an expression that cannot be used, that holds out nothing, or all
    rows of a family.
    """
    held = _held(kernels, holdout)
    scores = {}
    for operator in sorted(set(kernels.loc[held, "operator"])):
        if operator not in OPERATORS:
            progress(f"{operator}: no model of this family, not scored")
            continue
        rows = (kernels["operator"] == operator).to_numpy()
        family = kernels[rows].dropna(axis=1, how="all").reset_index(drop=True)
        if held[rows].all():
            raise ConfigError(f"--holdout: holds out every {operator} row, none is left to fit")
        progress(f"{operator}: {held[rows].sum():,} of {rows.sum():,} rows held out")
        scores[operator] = _score_family(operator, family, held[rows])
    if not scores:
        raise ConfigError(f"--holdout {holdout!r}: no row of a family that has a model")
    return scores


def _held(kernels: pd.DataFrame, holdout: str) -> npt.NDArray[np.bool_]:
    frame = kernels.reset_index(drop=True)
    try:
        chosen = frame.query(holdout)
    except pd.errors.UndefinedVariableError as error:
        name = str(error).split("'")[1]
        raise ConfigError(
            f"--holdout: unknown column {name!r}{nearest(name, frame.columns)}"
        ) from None
    except Exception as error:
        what = " ".join(str(error).split())
        raise ConfigError(f"--holdout {holdout!r}: not a pandas query: {what}") from None
    held = np.zeros(len(frame), bool)
    held[chosen.index] = True
    if not held.any():
        raise ConfigError(f"--holdout {holdout!r}: holds out no row")
    return held


def _score_family(operator: str, rows: pd.DataFrame, held: npt.NDArray[np.bool_]) -> Score:
    errors, outside, refused = [np.empty(0)], [np.empty(0, bool)], 0
    for error, extrapolated, left_out in _by_key(operator, rows, held):
        errors.append(error)
        outside.append(extrapolated)
        refused += left_out
    error = np.concatenate(errors)
    if not len(error):
        raise ConfigError(f"--holdout: too few {operator} rows are left of any key to fit")
    return Score(
        len(error),
        float(error.mean()),
        float(np.median(error)),
        float(np.quantile(error, 0.95)),
        float((error <= 0.06).mean()),
        float((error <= 0.10).mean()),
        float(np.concatenate(outside).mean()),
        refused,
    )


def _by_key(
    operator: str, rows: pd.DataFrame, held: npt.NDArray[np.bool_]
) -> Iterator[tuple[Floats, npt.NDArray[np.bool_], int]]:
    """Absolute relative errors, what was extrapolated and how many were refused, key by key."""
    family = family_named(operator)
    seconds = rows["duration_s"].to_numpy(np.float64)
    keys = [k for k in (*KEYS, *family.keyed) if k in rows]
    groups = rows.groupby(keys, dropna=False, sort=True).indices
    for values, found in groups.items():
        where = np.asarray(found, np.int64)
        asked, known = where[held[where]], where[~held[where]]
        if not len(asked):
            continue
        if len(known) < LEAST_ROWS:
            yield np.empty(0), np.empty(0, bool), len(asked)
            continue
        given = values if isinstance(values, tuple) else (values,)
        key = dict(zip(keys, map(str, given), strict=True))
        device = Device.named(key["device"], key["dtype"])
        shape = family.shape(rows.iloc[known], device)
        fitted = fit_operator(operator, family, key, shape, seconds[known])
        guess = fitted.predict(family.shape(rows.iloc[asked], device), device)
        yield np.abs(guess.seconds / seconds[asked] - 1), guess.extrapolated, 0
