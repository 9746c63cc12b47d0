"""Rows of a file, with every fault kept by file and line.

A reader asks for its columns, each with what it must be; ``check`` then raises all that is
wrong at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.check import MAX_FAULTS_PER_COLUMN
from traces.errors import TraceError

_INT = r"^\s*[+-]?\d{1,18}(\.0*)?\s*$"
_FLOAT = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_MAX_SHOWN = 40

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Rows:
    """The rows of one file: named columns of raw values, and the line each row is on.

    Where the rows of a file are not its lines, ``unit`` says what ``lines`` counts.
    """

    def __init__(
        self,
        path: Path,
        columns: dict[str, Sequence[Any] | pa.Array],
        lines: Ints,
        unit: str = "line",
    ) -> None:
        self.path = path
        self.columns = columns
        self.lines = lines
        self.unit = unit
        self.faults: list[str] = []

    def __len__(self) -> int:
        return len(self.lines)

    def ints(self, name: str, minimum: int | None = None) -> Ints:
        """A column of whole numbers; faults are kept, their values are 0."""
        values, bad = _parsed(self.columns[name], _INT, _int_or_none, np.int64)
        low = np.zeros(len(self), bool) if minimum is None else values < minimum
        at_least = "" if minimum is None else f" >= {minimum}"
        self._fault_values(name, bad | low, f"expected a whole number{at_least}")
        return values

    def floats(self, name: str, minimum: float | None = None) -> Floats:
        """A column of finite numbers; faults are kept, their values are NaN."""
        values, bad = _parsed(self.columns[name], _FLOAT, _float_or_none, np.float64)
        bad |= ~np.isfinite(values)
        low = np.zeros(len(self), bool) if minimum is None else values < minimum
        at_least = "" if minimum is None else f" >= {minimum:g}"
        self._fault_values(name, bad | low, f"expected a number{at_least}")
        return np.where(bad | low, np.nan, values)

    def texts(self, name: str) -> list[str]:
        """A column of names; faults are kept for what is no text or empty."""
        values = list(self.columns[name])
        bad = np.array([not isinstance(v, str) or not v for v in values], bool)
        self._fault_values(name, bad, "expected a text")
        return values

    def ordered(self, name: str, values: npt.NDArray[Any]) -> None:
        """Keep a fault for each row whose ``values`` are below those of the row before."""
        back = np.zeros(len(self), bool)
        back[1:] = np.diff(values) < 0
        self.fault_rows(
            back,
            lambda i: (
                f"{name} goes backwards: {self.shown(name, i)} after {self.shown(name, i - 1)}"
            ),
        )

    def not_before(self, late: str, early: str, late_s: Floats, early_s: Floats) -> None:
        """Keep a fault for each row where ``late`` lies before ``early``."""
        self.fault_rows(late_s < early_s, lambda i: f"{late} is before {early}")

    def fault_rows(self, bad: Mask, what: Callable[[int], str]) -> None:
        """Keep ``what(row)`` as a fault of each bad row; the first few are named."""
        rows = np.flatnonzero(bad)
        self._keep([(int(self.lines[r]), what(int(r))) for r in rows[:MAX_FAULTS_PER_COLUMN]])
        self._more(len(rows))

    def faults_at(self, faults: Mapping[int, str]) -> None:
        """Keep one fault for each row in ``faults``."""
        bad = np.zeros(len(self), bool)
        bad[list(faults)] = True
        self.fault_rows(bad, faults.__getitem__)

    def broken_lines(self, broken: Sequence[tuple[int, str]]) -> None:
        """Keep faults of lines that gave no row at all, as (line, what)."""
        self._keep(broken[:MAX_FAULTS_PER_COLUMN])
        self._more(len(broken))

    def check(self) -> None:
        """Raise TraceError with all faults kept so far, or if there is no row at all."""
        if self.faults:
            raise TraceError(self.faults)
        if not len(self):
            raise TraceError(f"{self.path}: an empty workload (no request in it)")

    def shown(self, name: str, row: int) -> str:
        """The raw value of a cell, short, as the file has it."""
        value = self.columns[name][row]
        if isinstance(value, pa.Scalar):
            value = value.as_py()
        text = json.dumps(value, default=str)
        return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."

    def _fault_values(self, name: str, bad: Mask, expected: str) -> None:
        self.fault_rows(bad, lambda i: f"{name} is {self.shown(name, i)}: {expected}")

    def _keep(self, faults: Sequence[tuple[int, str]]) -> None:
        at = ":" if self.unit == "line" else f": {self.unit} "
        self.faults += [f"{self.path}{at}{line}: {what}" for line, what in faults]

    def _more(self, count: int) -> None:
        if count > MAX_FAULTS_PER_COLUMN:
            more = count - MAX_FAULTS_PER_COLUMN
            self.faults.append(f"{self.path}: {more} more {self.unit}s like the last")


def _parsed(
    values: Sequence[Any] | pa.Array, pattern: str, parse: Callable[[Any], Any], dtype: type
) -> tuple[npt.NDArray[Any], Mask]:
    if isinstance(values, (pa.Array, pa.ChunkedArray)):
        bad = ~pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False)
        text = pc.if_else(pa.array(bad), "0", pc.utf8_trim_whitespace(values))
        if dtype is np.int64:
            text = pc.replace_substring_regex(pc.utf8_ltrim(text, "+"), r"\.0*$", "")
        else:
            text = pc.utf8_ltrim(text, "+")
        kind = pa.int64() if dtype is np.int64 else pa.float64()
        return pc.cast(text, kind).to_numpy(zero_copy_only=False), bad
    found = [parse(v) for v in values]
    bad = np.array([v is None for v in found], bool)
    return np.array([0 if v is None else v for v in found], dtype), bad


def _int_or_none(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if abs(value) < 1 << 62 else None


def _float_or_none(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 else None
