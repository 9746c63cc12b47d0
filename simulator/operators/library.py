"""Fitted operators of a table of kernels: one model per family and key, fitted and asked."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.base import KEYS, Device, label
from simulator.operators.families import family_named
from simulator.operators.model import FittedOperator, Prediction, fit_operator

LEAST_ROWS = 8  # below which a key is left out, and said to be
POOL_ROWS = 20_000  # rows from which starting other processes pays

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows (positions) of one operator and key."""

    operator: str
    key: dict[str, str]
    rows: npt.NDArray[np.int64]

    @property
    def name(self) -> str:
        """Operator and key in words."""
        return " ".join([self.operator, *(v for v in self.key.values() if v)])

    @property
    def same(self) -> tuple[str, ...]:
        """What two groups must share for one model to serve both."""
        return (self.operator, *self.key.values())


@dataclass(slots=True)
class Library:
    """Fitted operators; ``left_out`` names keys with too few rows to fit."""

    operators: list[FittedOperator] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    fitted_on: dict[str, Any] = field(default_factory=dict)

    def predict(self, rows: pd.DataFrame) -> Prediction:
        """Predict rows of the ``kernels`` table, in their order.

        Seconds are NaN, and the row counts as extrapolated, where its key was not fitted.
        Raises ConfigError for an unknown operator.
        """
        known = {(o.family, *o.key.values()): o for o in self.operators}
        seconds, outside = np.full(len(rows), np.nan), np.ones(len(rows), bool)
        for group in groups_of(rows):
            if (operator := known.get(group.same)) is None:
                continue
            device = device_of(group.key)
            shape = family_named(group.operator).shape(rows.iloc[group.rows], device)
            found = operator.predict(shape, device)
            seconds[group.rows], outside[group.rows] = found.seconds, found.extrapolated
        return Prediction(seconds, outside)


def device_of(key: dict[str, str]) -> Device:
    """The device of a key."""
    return Device.named(key["device"], key["dtype"])


def groups_of(rows: pd.DataFrame) -> Iterator[Group]:
    """Rows by operator and key, in sorted order. Raises ConfigError for an unknown operator."""
    operators = label(rows, "operator")
    for operator in sorted(set(operators)):
        names = (*KEYS, *family_named(operator).keyed)
        own = np.flatnonzero(operators == operator)
        values = {n: label(rows, n)[own].astype(str) for n in names}
        number = pd.DataFrame(values).groupby(list(names)).ngroup().to_numpy()
        for where in (np.flatnonzero(number == i) for i in range(number.max() + 1)):
            yield Group(operator, {n: str(v[where[0]]) for n, v in values.items()}, own[where])


def fit_library(
    rows: pd.DataFrame, *, workers: int | None = None, progress: Say = lambda _: None
) -> Library:
    """Fit every operator and key of rows of the ``kernels`` table.

    ``workers`` processes share the work (default: one a core) where there is enough of it; the
    result does not depend on them. Raises ConfigError for an unknown operator.
    """
    groups = list(groups_of(rows))
    enough = [g for g in groups if len(g.rows) >= LEAST_ROWS]
    largest_first = sorted(enough, key=lambda g: -len(g.rows))
    fitted = {
        group.same: operator
        for group, operator in _fit_all(
            rows, largest_first, workers or os.cpu_count() or 1, progress
        )
    }
    few = [f"{g.name}: {len(g.rows)} rows" for g in groups if len(g.rows) < LEAST_ROWS]
    return Library([fitted[g.same] for g in enough], few)


def _fit_all(
    rows: pd.DataFrame, groups: Sequence[Group], workers: int, progress: Say
) -> Iterator[tuple[Group, FittedOperator]]:
    def say(done: int, group: Group) -> None:
        progress(f"fitted {done} of {len(groups)}: {group.name} ({len(group.rows)} rows)")

    workers = min(workers, len(groups))
    if workers < 2 or sum(len(g.rows) for g in groups) < POOL_ROWS:
        for done, group in enumerate(groups, 1):
            yield group, _fit_group(group.operator, group.key, rows.iloc[group.rows])
            say(done, group)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        futures: dict[Future[FittedOperator], Group] = {
            pool.submit(_fit_group, g.operator, g.key, _own_columns(rows.iloc[g.rows])): g
            for g in groups
        }
        for done, future in enumerate(as_completed(futures), 1):
            yield futures[future], future.result()
            say(done, futures[future])


def _own_columns(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.dropna(axis=1, how="all")


def _fit_group(operator: str, key: dict[str, str], rows: pd.DataFrame) -> FittedOperator:
    family = family_named(operator)
    shape = family.shape(rows, device_of(key))
    return fit_operator(operator, family, key, shape, rows["duration_s"].to_numpy(np.float64))
