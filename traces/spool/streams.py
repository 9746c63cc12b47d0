"""Spool files as arrow tables: one JSON row a line, one file a stream and replica.

A line is complete or it is the last one of its file, torn by a kill; then it is left out
and named in ``Spool.torn``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj

from traces.errors import TraceError

_INTS = pa.list_(pa.int64())
_COLUMNS: dict[str, dict[pa.DataType, str]] = {
    "requests": {
        pa.string(): "event id status",
        pa.int64(): "request prompt_tokens max_tokens priority output_tokens preemptions",
        pa.float64(): "time_s age_s",
        _INTS: "hashes",
        pa.list_(pa.string()): "features",
    },
    "steps": {
        pa.int64(): "step running waiting free_blocks padded_tokens empty_before",
        pa.float64(): "start_s end_s",
        _INTS: "preempted_before preempted requests tokens computed emitted",
    },
    "forward": {
        pa.int64(): "step",
        pa.bool_(): "dummy",
        pa.float64(): "forward_s thread_s start_s",
    },
    "experts": {pa.int64(): "step", _INTS: "layers", pa.list_(_INTS): "tokens"},
    "spans": {
        pa.int64(): "step",
        pa.list_(pa.string()): "stages groups",
        _INTS: "layers bytes",
        pa.list_(pa.float64()): "start_s end_s",
    },
    "transfers": {
        pa.string(): "id source",
        pa.int64(): "bytes",
        pa.float64(): "start_s posted_s duration_s seen_s",
    },
    "routing": {
        pa.string(): "id",
        pa.float64(): "time_s",
        pa.int64(): "client clients start_index replica",
        _INTS: "in_flight waiting running",
        pa.list_(pa.float64()): "kv_usage",
    },
}
SCHEMAS: dict[str, pa.Schema] = {
    stream: pa.schema([(key, kind) for kind, keys in columns.items() for key in keys.split()])
    for stream, columns in _COLUMNS.items()
}
_MAX_BLOCK_BYTES = 1 << 28


@dataclass(slots=True)
class Spool:
    """A spool directory; ``torn`` lists the streams whose last line was cut off."""

    path: Path
    torn: list[str] = field(default_factory=list)

    def names(self, stream: str) -> list[str]:
        """Names of a stream's files, by replica (and rank) or client."""
        names = [f.stem for f in self.path.glob(f"{stream}.*.jsonl")]
        return sorted(names, key=lambda name: [int(n) for n in name.split(".")[1:]])

    def objects(self, stream: str) -> list[dict[str, Any]]:
        """Rows of a stream with one row a file (engine, model); raises TraceError."""
        return [row for name in self.names(stream) for row in self.lines(name)]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The complete rows of one file as they are; raises TraceError."""
        try:
            return [json.loads(line) for line in self._complete(name).splitlines()]
        except ValueError as error:
            raise TraceError(f"{self.path / name}.jsonl: not a row: {error}") from None

    def rows(self, name: str) -> pa.Table:
        """The complete rows of one file in the order written; empty if it does not exist.

        Raises TraceError if a line before the last is not a row.
        """
        schema = SCHEMAS[name.split(".")[0]]
        data = self._complete(name)
        if not data:
            return schema.empty_table()
        # a row may not span more than two blocks
        read = pj.ReadOptions(block_size=min(len(data) + 1, _MAX_BLOCK_BYTES))
        parse = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        try:
            table = pj.read_json(pa.BufferReader(data), read_options=read, parse_options=parse)
        except pa.ArrowInvalid as error:
            what = str(error).splitlines()[0]
            raise TraceError(f"{self.path / name}.jsonl: not a row: {what}") from None
        return table.combine_chunks()

    def _complete(self, name: str) -> bytes:
        file = self.path / f"{name}.jsonl"
        if not file.is_file():
            return b""
        data = file.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data) and name not in self.torn:
            self.torn.append(name)
        return data[:end]
