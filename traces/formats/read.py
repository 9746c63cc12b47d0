"""CSV and JSON-lines files as ``Rows``."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from traces.errors import TraceError
from traces.formats.rows import Rows
from traces.formats.text import read_bytes, read_text


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
