"""Content hashes: the same for the same content, however it is chunked, encoded or compressed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from traces.schema import TYPES, Table

DIGEST_BYTES = 16
_BATCH_ROWS = 1 << 16


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


def new_hash() -> _Hash:
    """An empty hash of the kind used throughout."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def text_digest(value: Any) -> str:
    """Hex digest of plain data (dicts, lists, strings, numbers), key order ignored."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    digest = new_hash()
    digest.update(text.encode())
    return digest.hexdigest()


def batches_of(source: pa.Table | Path) -> Iterator[pa.RecordBatch]:
    """Batches of a table in memory, or of a parquet file read piece by piece."""
    if isinstance(source, Path):
        yield from pq.ParquetFile(source).iter_batches(batch_size=_BATCH_ROWS)
    else:
        yield from source.to_batches(max_chunksize=_BATCH_ROWS)


def _characters(values: pa.StringArray) -> memoryview:
    """The bytes of all strings, end to end; none of them is null."""
    _, offsets, characters = values.buffers()
    if characters is None:
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1]
    return memoryview(characters)[ends[0] : ends[-1]]


def table_digest(table: Table, batches: Iterable[pa.RecordBatch]) -> str:
    """Hex digest of a table's rows in order, over the columns that hold any value.

    Each column is three streams (validity, list or string lengths, values), hashed as they
    come: memory does not grow with the rows.
    """
    streams: dict[str, tuple[_Hash, _Hash, _Hash]] = {}
    filled: set[str] = set()
    rows = 0
    for batch in batches:
        rows += len(batch)
        for name in batch.schema.names:
            if name not in table.by_name:
                continue
            values = batch.column(name).cast(TYPES[table.by_name[name].type])
            if values.null_count < len(values):
                filled.add(name)
            _update(streams.setdefault(name, (new_hash(), new_hash(), new_hash())), values)
    columns = {
        name: [stream.hexdigest() for stream in streams[name]]
        for name in table.by_name
        if name in filled
    }
    return text_digest({"rows": rows, "columns": columns})


def _update(streams: tuple[_Hash, _Hash, _Hash], values: pa.Array) -> None:
    validity, lengths, content = streams
    validity.update(pc.is_valid(values).to_numpy(zero_copy_only=False).astype(np.uint8))
    if pa.types.is_list(values.type):
        sizes = pc.fill_null(pc.list_value_length(values), 0)
        lengths.update(sizes.to_numpy(zero_copy_only=False).astype(np.int64))
        values = values.flatten()
    if pa.types.is_string(values.type):
        sizes = pc.fill_null(pc.binary_length(values), 0)
        lengths.update(sizes.to_numpy(zero_copy_only=False).astype(np.int64))
        content.update(_characters(values.drop_null()))
        return
    # Numbers under a null are whatever was there before: made zero.
    zero = pa.scalar(False if pa.types.is_boolean(values.type) else 0, values.type)
    numbers = pc.fill_null(values, zero).to_numpy(zero_copy_only=False)
    content.update(np.ascontiguousarray(numbers))
