"""Rows of a CSV or JSON-lines file, with every fault kept by file and line.

A reader asks for its columns, each with what it must be; ``check`` then raises all that is
wrong at once. Files compressed with gzip are read as they are.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from traces.check import MAX_FAULTS_PER_COLUMN
from traces.errors import TraceError

HEAD_CHARS = 1 << 16
_INT = r"^\s*[+-]?\d{1,18}(\.0*)?\s*$"
_FLOAT = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"
_MAX_SHOWN = 40

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


class Rows:
    """The rows of one file: named columns of raw values, and the line each row is on."""

    def __init__(
        self,
        path: Path,
        columns: dict[str, Sequence[Any] | pa.Array],
        lines: Ints,
    ) -> None:
        self.path = path
        self.columns = columns
        self.lines = lines
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
        """A column of finite numbers; faults are kept, their values are 0."""
        values, bad = _parsed(self.columns[name], _FLOAT, _float_or_none, np.float64)
        bad |= ~np.isfinite(values)
        low = np.zeros(len(self), bool) if minimum is None else values < minimum
        at_least = "" if minimum is None else f" >= {minimum:g}"
        self._fault_values(name, bad | low, f"expected a number{at_least}")
        return np.where(bad, 0.0, values)

    def ordered(self, name: str, values: npt.NDArray[Any]) -> None:
        """Keep a fault for each row whose ``values`` are below those of the row before."""
        back = np.zeros(len(self), bool)
        back[1:] = np.diff(values) < 0
        self.fault_rows(
            back,
            lambda i: f"{name} goes backwards: {self.shown(name, i)} after {self.shown(name, i - 1)}",
        )

    def not_before(self, late: str, early: str, late_s: Floats, early_s: Floats) -> None:
        """Keep a fault for each row where ``late`` lies before ``early``."""
        self.fault_rows(late_s < early_s, lambda i: f"{late} is before {early}")

    def fault_rows(self, bad: Mask, what: Callable[[int], str]) -> None:
        """Keep ``what(row)`` as a fault of each bad row; the first few are named."""
        rows = np.flatnonzero(bad)
        self._keep([(int(self.lines[r]), what(int(r))) for r in rows[:MAX_FAULTS_PER_COLUMN]])
        self._more(len(rows))

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
        self.faults += [f"{self.path}:{line}: {what}" for line, what in faults]

    def _more(self, count: int) -> None:
        if count > MAX_FAULTS_PER_COLUMN:
            more = count - MAX_FAULTS_PER_COLUMN
            self.faults.append(f"{self.path}: {more} more lines like the last")


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


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed. Raises TraceError if it cannot be read."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: not readable as gzip: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The content of a text file, decompressed. Raises TraceError, naming the line."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TraceError(f"{path}:{line}: not UTF-8 text") from None


def read_head(path: Path) -> str:
    """The first ``HEAD_CHARS`` characters of a text file, decompressed. Raises TraceError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as stream:
                data = stream.read(HEAD_CHARS)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: not readable as gzip: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    if b"\x00" in data:
        raise TraceError(f"{path}: not a text file")
    return data.decode("utf-8-sig", errors="replace")


def keys_of(head: str) -> list[str]:
    """Column names of a CSV's first line, or the keys of a first JSON object.

    >>> keys_of('a, "b c"\\n1,2'), keys_of('{"x": 1, "y": [2'), keys_of('{\\n "z": 1}')
    (['a', 'b c'], ['x', 'y'], ['z'])
    """
    first, _, _ = head.lstrip().partition("\n")
    if not first.startswith("{"):
        return [name.strip().strip('"') for name in first.split(",")]
    keys = re.compile(r'"([^"\\]+)"\s*:')
    return keys.findall(first) or keys.findall(head)


def read_csv(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """The named columns of a CSV file, as text; an optional one may be absent.

    Rows with more or fewer columns than the header become faults. Raises TraceError if the
    file cannot be read or lacks a column.
    """
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8).rstrip()
    header = keys_of(data.partition(b"\n")[0].decode(errors="replace"))
    faults = [f"{path}: column {n!r} is missing" for n in names if n not in header]
    faults += [f"{path}: column {n!r} appears twice" for n in names if header.count(n) > 1]
    if faults:
        raise TraceError(faults if data else f"{path}: the file is empty")
    broken: list[tuple[int, str]] = []

    def invalid(row: Any) -> str:
        what = f"{row.actual_columns} columns, the header has {row.expected_columns}"
        broken.append((row.number, what))
        return "skip"

    kept = [n for n in (*names, *optional) if n in header]
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(data + b"\n"),
            # one thread: only then is the line of an invalid row known
            read_options=pa.csv.ReadOptions(use_threads=False, skip_rows=1, column_names=header),
            parse_options=pa.csv.ParseOptions(
                invalid_row_handler=invalid, ignore_empty_lines=False
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=kept,
                column_types=dict.fromkeys(kept, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if b"\n" not in data:  # a header and nothing else
            raise TraceError(f"{path}: an empty workload (no request in it)") from None
        raise TraceError(f"{path}: not readable as CSV: {str(error).splitlines()[0]}") from None
    skipped = np.array([number for number, _ in broken], np.int64)
    lines = np.setdiff1d(np.arange(2, len(table) + len(broken) + 2), skipped)
    rows = Rows(path, {n: table.column(n).combine_chunks() for n in kept}, lines)
    rows.broken_lines(broken)
    return rows


def read_jsonl(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Rows:
    """Rows of a JSON-lines file: one object a line, with all of ``names``.

    A missing optional key is None. Lines that are not such objects become faults.
    """
    found: dict[str, list[Any]] = {n: [] for n in (*names, *optional)}
    lines: list[int] = []
    broken: list[tuple[int, str]] = []
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            broken.append((number, f"not JSON: {error}"))
            continue
        missing = [n for n in names if n not in row] if isinstance(row, dict) else []
        if not isinstance(row, dict) or missing:
            what = f"key {missing[0]!r} is missing" if missing else "expected an object"
            broken.append((number, what))
            continue
        lines.append(number)
        for name, values in found.items():
            values.append(row.get(name))
    rows = Rows(path, dict(found), np.array(lines, np.int64))
    rows.broken_lines(broken)
    return rows
