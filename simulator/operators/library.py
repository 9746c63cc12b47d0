"""Fitted operators of a table of kernels: one model per family and key, fitted, asked, kept.

On disk a library is data: ``operators.yaml`` says what was fitted on what, ``operators.npz``
holds the arrays. Loading needs neither scikit-learn nor the kernels it was fitted on.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from simulator.operators.base import KEYS, Device, label
from simulator.operators.correction import of_data, to_data
from simulator.operators.families import family_named
from simulator.operators.model import FittedOperator, Prediction, fit_operator
from simulator.operators.roofline import Roofline
from simulator.operators.trees import Trees
from traces.errors import TraceError

SCHEMA = 1
PLAIN, ARRAYS = "operators.yaml", "operators.npz"
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

    operators: list[FittedOperator]
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


def save_library(library: Library, path: Path) -> None:
    """Write ``operators.yaml`` and ``operators.npz`` under ``path``; same bytes for the same."""
    plain, arrays = [], {}
    for i, operator in enumerate(library.operators):
        entry, own = _to_data(operator)
        plain.append(entry)
        arrays.update({f"{i}/{name}": values for name, values in own.items()})
    content = {
        "schema": SCHEMA, "fitted_on": library.fitted_on, "left_out": library.left_out,
        "operators": plain,
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    (path / PLAIN).write_text(text, encoding="utf-8")
    np.savez_compressed(path / ARRAYS, **arrays)


def load_library(path: Path) -> Library:
    """Read what ``save_library`` wrote; raises TraceError."""
    try:
        content = yaml.safe_load((path / PLAIN).read_text(encoding="utf-8"))
        with np.load(path / ARRAYS, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, BadZipFile, yaml.YAMLError) as error:
        raise TraceError(f"{path}: no fitted operators there: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise TraceError(f"{path / PLAIN}: not fitted operators of schema {SCHEMA}")
    try:
        operators = [
            _of_data(e, _under(arrays, f"{i}/")) for i, e in enumerate(content["operators"])
        ]
    except (KeyError, TypeError, StopIteration) as error:
        raise TraceError(f"{path / PLAIN}: does not fit {ARRAYS}: {error!r}") from None
    return Library(operators, content["left_out"], content["fitted_on"])


def _under(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _to_data(operator: FittedOperator) -> tuple[dict[str, Any], dict[str, Any]]:
    roofline = operator.roofline
    plain: dict[str, Any] = {
        "operator": operator.family,
        "key": operator.key,
        "rows": operator.rows,
        "roofline": {"floor_s": roofline.floor_s, "overlap": roofline.overlap,
                     "cost_s": dict(zip(operator.kinds, roofline.cost_s.tolist(), strict=True))},
        "lows": operator.lows,
        "highs": operator.highs,
        "names": operator.names,
        "corrections": [],
    }  # fmt: skip
    arrays = {n: getattr(operator, n) for n in ("residual", "seconds", "base")}
    for name, values in operator.place.items():
        arrays[f"place/{name}"] = values.astype(str) if values.dtype == object else values
    if operator.trees is not None:
        arrays.update({f"trees/{n}": v for n, v in operator.trees.arrays().items()})
    for i, correction in enumerate(operator.corrections):
        entry, own = to_data(correction)
        plain["corrections"].append(entry)
        arrays.update({f"correction/{i}/{n}": v for n, v in own.items()})
    return plain, arrays


def _of_data(plain: dict[str, Any], arrays: dict[str, Any]) -> FittedOperator:
    axes = {axis.name: axis for axis in family_named(plain["operator"]).axes}
    trees, roofline = _under(arrays, "trees/"), plain["roofline"]
    return FittedOperator(
        plain["operator"],
        plain["key"],
        tuple(roofline["cost_s"]),
        Roofline(
            roofline["floor_s"], np.array(list(roofline["cost_s"].values())), roofline["overlap"]
        ),
        Trees.of(trees) if trees else None,
        [
            of_data(axes[entry["axis"]], entry, _under(arrays, f"correction/{i}/"))
            for i, entry in enumerate(plain["corrections"])
        ],
        {
            name: values.astype(object) if values.dtype.kind == "U" else values
            for name, values in _under(arrays, "place/").items()
        },
        arrays["residual"],
        arrays["seconds"],
        arrays["base"],
        plain["lows"],
        plain["highs"],
        plain["names"],
        plain["rows"],
    )
