"""A step-time model as data that compiled code evaluates: one call a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int64
from dataclasses import fields
from operator import attrgetter
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.engine import times
from simulator.engine.build import load
from simulator.engine.entries import evaluate
from simulator.engine.layout import Coefficient, Model, Shape
from simulator.engine.layout import Term as Record
from simulator.engine.memory import ints_of, place_of
from simulator.step_time.base import BatchShape, StepTimes
from simulator.step_time.functions import (
    ActiveExperts,
    Attention,
    Axis,
    Beyond,
    Constant,
    Dense,
    Function,
    Linear,
    Shared,
    Table,
    UpTo,
)
from traces.errors import ConfigError

FEATURES = tuple(Shape.__annotations__)
GIVEN = {field.name for field in fields(BatchShape)}  # the rest is found by ``evaluate``
TIMES_AT = place_of(Model, StepTimes._fields[0] + "_ps") * 8  # they follow one another
Sum = Sequence[tuple[float, Function]]  # (coefficient, function) pairs
Fields = dict[str, int]


class CompiledStepTime:
    """Sums of functions of the shape for each part of a step (``StepTimes``), seconds.

    Summands are added in their order. ``ranges`` are the largest values of features that
    the model holds for, ``layers`` the same by name, with the feature: a step beyond any, or
    beyond a table, counts as extrapolated, and ``outside`` says beyond which.
    ``exchange`` is part of forward, and what two halves of a step hide behind each other, over
    ``overlap`` layers. ``parts`` are the names under which ``spent`` adds up the summands of
    forward, head, hop and exchange.
    ``address`` is where compiled code finds the model.
    """

    def __init__(
        self,
        forward: Sum,
        host: Sum = (),
        gap: Sum = (),
        head: Sum = (),
        hop: Sum = (),
        exchange: Sum = (),
        *,
        frontend_ps: int = 0,
        ranges: Mapping[str, int] | None = None,
        layers: Mapping[str, tuple[str, int]] | None = None,
        parts: Sequence[str] = (),
        overlap: int = 1,
    ) -> None:
        self.frontend_ps = frontend_ps
        self._parts = parts or [""] * len([*forward, *head, *hop, *exchange])
        numbers: list[float] = [1.0]  # a coefficient for what has none
        terms: list[Fields] = [
            {"part": part, **_fields(function, coefficient, numbers)}
            for part, summands in (
                (times.FORWARD, forward),
                (times.HEAD, head),
                (times.HOP, hop),
                (times.EXCHANGE, exchange),
                (times.HOST, host),
                (times.GAP, gap),
            )
            for coefficient, function in summands
        ]
        limits = {name: (name, most) for name, most in (ranges or {}).items()}
        limits.update(layers or {})
        for feature, most in limits.values():
            terms.append({"kind": times.RANGE, "feature": _feature(feature), "knee": most})
        unnamed = [""] * (len(terms) - len(self._parts) - len(limits))  # of host and gap
        self._named = [*self._parts, *unnamed, *limits]
        self._terms = np.zeros(len(terms), Record.dtype)
        for term, values in zip(self._terms, terms, strict=True):
            for key, value in values.items():
                term[key] = value
        self._numbers = np.array(numbers).view(Coefficient.dtype)
        self._shape = np.zeros(1, Shape.dtype)
        self._model = np.zeros(1, Model.dtype)
        self._model["terms"] = len(terms)
        self._model["overlap"] = overlap
        for key, array in (
            ("shape_at", self._shape), ("terms_at", self._terms), ("numbers_at", self._numbers)
        ):  # fmt: skip
            self._model[key] = array.ctypes.data
        self.address: int = self._model.ctypes.data
        self._features = attrgetter(*(name for name in FEATURES if name in GIVEN))
        self._pack = Struct("".join("q" if name in GIVEN else "8x" for name in FEATURES)).pack_into
        self._unpack = Struct(f"{len(StepTimes._fields)}q").unpack_from
        self._asked, self._answer = ints_of(self._shape), ints_of(self._model)
        self._evaluate: Callable[[Any], None] = load(evaluate, brief=True)
        self._argument = c_int64(self.address)  # made once

    def times(self, shape: BatchShape) -> StepTimes:
        """Times of a step of this shape; one beyond the model's range is counted.

        A rank of which no more is said steps alone.
        """
        self._pack(self._asked, 0, *self._features(shape))
        self._evaluate(self._argument)
        return StepTimes._make(self._unpack(self._answer, TIMES_AT))

    def last_shape(self) -> BatchShape:
        """Shape of the step asked for last."""
        shape = self._shape[0]
        return BatchShape(**{f.name: int(shape[f.name]) for f in fields(BatchShape)})

    def coverage(self) -> dict[str, int]:
        """How many steps were asked for and how many lay outside the range."""
        return {name: int(self._model[name][0]) for name in ("steps", "extrapolated")}

    def outside(self) -> dict[str, int]:
        """Steps asked for so far by the part or range that they lay outside of, where named."""
        found: dict[str, int] = {}
        for name, term in zip(self._named, self._terms, strict=True):
            if name and term["beyond"]:
                found[name] = max(found.get(name, 0), int(term["beyond"]))
        return found

    def spent(self) -> dict[str, float]:
        """Seconds of the device so far by part, summed over all steps asked for."""
        found = dict.fromkeys(self._parts, 0.0)
        for name, term in zip(self._parts, self._terms, strict=False):
            found[name] += float(term["spent"])
        return found


def _fields(function: Function, coefficient: float, numbers: list[float]) -> Fields:
    """A term's record; what is no integer is appended to ``numbers``."""
    start = len(numbers)
    numbers.append(coefficient)
    match function:
        case Constant():
            return {"kind": times.CONSTANT, "start": start}
        case Linear(feature):
            return {"kind": times.LINEAR, "start": start, "feature": _feature(feature)}
        case UpTo(feature, knee):
            kind = times.UPTO
        case Beyond(feature, knee):
            kind = times.BEYOND
        case ActiveExperts(experts, top_k):
            numbers += [float(experts), 1.0 - top_k / experts]
            return {"kind": times.ACTIVE_EXPERTS, "start": start, "feature": _feature("tokens")}
        case Dense(feature, values):
            numbers += np.asarray(values, float).tolist()
            size = {"columns": len(values), "knee": function.together, "halves": function.halves}
            return {"kind": times.DENSE, "start": start, "feature": _feature(feature), **size}
        case Shared():
            return {"kind": times.SHARED, "start": start, **_shared(function, numbers)}
        case Attention():
            return {"kind": times.ATTENTION, "start": start, **_attention(function, numbers)}
        case Table():
            return {"kind": times.TABLE, "start": start, **_table(function, numbers)}
    return {"kind": kind, "start": start, "feature": _feature(feature), "knee": knee}


def _table(table: Table, numbers: list[float]) -> Fields:
    values = np.asarray(table.values, float)
    axes = [table.x] if table.y is None else [table.x, table.y]
    if values.shape != (1 if table.y is None else len(table.y.grid), len(table.x.grid)):
        raise ConfigError(f"table of {table.x.feature}: values of shape {values.shape}")
    for axis in axes:
        numbers += _grid(axis).tolist()
    if table.y is None:
        numbers.append(0.0)
    numbers += (np.log(values) if table.log else values).ravel().tolist()
    logs = [times.LOG_X, times.LOG_Y]
    return {
        "feature": _feature(table.x.feature),
        "other": 0 if table.y is None else _feature(table.y.feature),
        "columns": values.shape[1],
        "lines": values.shape[0],
        "logs": sum(log for axis, log in zip(axes, logs, strict=False) if axis.log)
        + times.LOG_VALUE * table.log,
    }


def _shared(curves: Shared, numbers: list[float]) -> Fields:
    grid, values = np.asarray(curves.grid, float), np.asarray(curves.values, float)
    beside = np.asarray(curves.beside, float)
    shape = (len(values), *[len(beside)] * bool(len(beside)), len(grid))
    rising = all((np.diff(axis) > 0).all() for axis in (grid, beside))
    if len(grid) < 2 or len(beside) == 1 or not rising or values.shape != shape:
        raise ConfigError(f"shared table: values of shape {values.shape} on {len(grid)} points")
    for part in (curves.padded, grid, beside, values):
        numbers += np.asarray(part, float).ravel().tolist()
    size = {"columns": len(grid), "lines": len(values), "planes": len(beside)}
    return {"knee": len(curves.padded), **size}


def _attention(table: Attention, numbers: list[float]) -> Fields:
    sizes = [len(axis) for axis in table.axes]
    if table.seconds.shape != tuple(sizes) or table.spread.shape != (2, *sizes[2:]):
        raise ConfigError(f"attention table: values of shape {table.seconds.shape}")
    for part in (*table.axes, table.seconds, table.spread, [table.spread_most]):
        numbers += np.asarray(part, float).ravel().tolist()
    return dict(zip(("columns", "lines", "planes", "cubes"), sizes, strict=True))


def _grid(axis: Axis) -> npt.NDArray[np.float64]:
    grid = np.asarray(axis.grid, float)
    if len(grid) < 2 or (np.diff(grid) <= 0).any() or (axis.log and grid[0] <= 0):
        raise ConfigError(f"table axis {axis.feature}: not two or more ascending numbers"
                          + ", above 0 for logarithms" * axis.log)  # fmt: skip
    return np.log(grid) if axis.log else grid


def _feature(name: str) -> int:
    return FEATURES.index(name)
