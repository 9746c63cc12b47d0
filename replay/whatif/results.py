"""What a sweep has found: a journal it goes on from when killed, and the table.

The journal has one JSON line a point, by the point's key, appended and flushed whole; a line
cut short by a kill is dropped. The table is written anew each time, beside itself first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from replay.whatif.base import Settings
from replay.whatif.spec import Statistic
from traces.errors import TraceError

JOURNAL = "journal.jsonl"
TABLE = "results.parquet"
# name -> type, in the order of the table; those no row has a value in are left out
COLUMNS: dict[str, pa.DataType] = {
    "gpus": pa.int64(),
    "cost_per_hour": pa.float64(),
    "memory_gb": pa.float64(),
    "kv_capacity": pa.string(),
    "meets_slos": pa.bool_(),
    "objective": pa.float64(),
    "capacity": pa.float64(),
    "capacity_below": pa.float64(),
    "capacity_rate_scale": pa.float64(),
    "capacity_per_gpu": pa.float64(),
    "slo_share": pa.float64(),
    "goodput": pa.float64(),
    "goodput_per_gpu": pa.float64(),
    "requests": pa.int64(),
    "finished": pa.int64(),
    "duration_s": pa.float64(),
    "requests_per_s": pa.float64(),
    "tokens_per_s": pa.float64(),
    "tokens_per_s_per_gpu": pa.float64(),
    "cost_per_million_tokens": pa.float64(),
    "extrapolated": pa.float64(),
    "ignored": pa.string(),
    "notes": pa.string(),
}
Row = dict[str, Any]


class Journal:
    """Rows by key, on disk; ``rows`` are those found so far, by this run or an earlier one."""

    def __init__(self, folder: Path) -> None:
        """Open the journal in ``folder``. Raises TraceError if that holds something else."""
        if folder.exists() and not folder.is_dir():
            raise TraceError(f"{folder}: not a directory")
        file = folder / JOURNAL
        if folder.is_dir() and any(folder.iterdir()) and not file.is_file():
            raise TraceError(f"{folder}: exists and is not a sweep's; choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Row] = {}
        whole = self._read(file) if file.is_file() else 0
        self._file: IO[bytes] = file.open("r+b" if file.is_file() else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)

    def _read(self, file: Path) -> int:
        """Take in the whole lines; returns how many bytes they are."""
        whole = 0
        for number, line in enumerate(file.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            try:
                key, row = json.loads(line)
            except (ValueError, TypeError):
                raise TraceError(f"{file}:{number}: not a line of a sweep's journal") from None
            self.rows[key] = row
            whole += len(line)
        return whole

    def add(self, key: str, row: Row) -> None:
        """Keep the row of a point."""
        self.rows[key] = row
        self._file.write(json.dumps([key, row]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_results(
    folder: Path,
    found: Sequence[tuple[int, Settings, Row]],
    keys: Sequence[str],
    statistics: Sequence[Statistic],
) -> pa.Table:
    """Write ``results.parquet`` from points' numbers, settings (by key) and rows.

    Replaces the table as a whole; returns it.
    """
    rows = [row for _, _, row in found]
    columns: dict[str, pa.Array] = {
        "point": pa.array([number for number, _, _ in found], pa.int64()),
        "status": pa.array([r["status"] for r in rows], pa.string()),
        "reason": pa.array([r["reason"] for r in rows], pa.string()),
        "deployment": pa.array([r["deployment"] for r in rows], pa.string()),
    }
    for key in keys:
        columns[key] = settings_column([settings.get(key) for _, settings, _ in found])
    measured = {s.column: pa.float64() for s in statistics}
    for name, kind in (COLUMNS | measured).items():
        values = [r.get(name) for r in rows]
        if any(v is not None for v in values):
            columns[name] = pa.array(values, kind)
    table = pa.table(columns)
    beside = folder / f".{TABLE}.part"
    pq.write_table(table, beside, compression="zstd")
    beside.replace(folder / TABLE)
    return table


def settings_column(values: Sequence[Any]) -> pa.Array:
    """A key's values: numbers or truths as such, anything else as text."""
    known = [v for v in values if v is not None]
    if known and all(isinstance(v, bool) for v in known):
        return pa.array(values, pa.bool_())
    if known and all(isinstance(v, int) and not isinstance(v, bool) for v in known):
        return pa.array(values, pa.int64())
    if known and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    texts = [v if isinstance(v, str) or v is None else json.dumps(v) for v in values]
    return pa.array(texts, pa.string())
