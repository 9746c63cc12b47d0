"""What a source of measured operator tables is, and how its rows become ``KERNELS`` rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from traces.schema import KERNELS, TYPES

KEYS = ("device", "node", "engine", "engine_version", "backend", "dtype", "timing")
"""Columns whose values never mix in one fit."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which part of a source is wanted; None takes what the source has by default.

    ``gpu`` is a hardware sheet's name. ``version`` is an engine version, or ``latest`` or
    ``all``; it picks the collection, each row says itself what it was measured on.
    """

    gpu: str | None = None
    engine: str | None = None
    version: str | None = None


@dataclass(slots=True)
class Reading:
    """What a source held: ``KERNELS`` rows, the files they came from, and what was left out.

    ``dropped`` counts rows by the reason they were left out, ``left_out`` names whole tables,
    and ``remarks`` says what a reader of the numbers must know.
    """

    table: pa.Table
    files: list[Path]
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class KernelSource(Protocol):
    """One collection of operator timings made by others; ``licence`` is that of the data."""

    name: str
    licence: str

    def read(self, path: Path, wanted: Selection) -> Reading:
        """Read the collection at ``path``; times become seconds, sizes bytes.

        Raises TraceError with file, row and what, or ConfigError for a selection the source
        cannot serve.
        """


def kernel_rows(columns: Mapping[str, Any], rows: int) -> pa.Table:
    """A ``KERNELS`` table from arrays of ``rows`` values and single values that hold for all.

    None stands for a column that does not apply. Raises KeyError for an unknown column.
    """
    arrays: dict[str, pa.Array] = {}
    for name, value in columns.items():
        kind = TYPES[KERNELS.by_name[name].type]
        if isinstance(value, (pa.Array, pa.ChunkedArray)):
            arrays[name] = value.cast(kind)
        elif isinstance(value, (np.ndarray, pd.Series, list)):
            arrays[name] = pa.array(value, kind, from_pandas=True)
        elif value is not None:
            arrays[name] = pa.repeat(pa.scalar(value, kind), rows)
    ordered = [c.name for c in KERNELS.columns if c.name in arrays]
    return pa.table({name: arrays[name] for name in ordered})


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables; a column that one of them lacks is null there."""
    names = {name for table in tables for name in table.column_names}
    schema = KERNELS.arrow_schema([c.name for c in KERNELS.columns if c.name in names])
    full = [pa.concat_tables([t, schema.empty_table()], promote_options="default") for t in tables]
    return (
        pa.concat_tables([t.select(schema.names) for t in full]) if full else schema.empty_table()
    )


def homogeneous(batch: Any, query: Any, context: Any) -> dict[str, Any]:
    """Shape columns of ``batch`` requests that all have the same query and context lengths."""
    batch, query, context = (np.atleast_1d(x).astype(np.int64) for x in (batch, query, context))
    return {
        "batch": batch,
        "query_tokens": query,
        "context_tokens": context,
        "query_sum": batch * query,
        "context_sum": batch * context,
        "context_sq_sum": batch * context**2,
        "context_max": context,
    }


def mixed_lengths(
    query_lens: Sequence[Sequence[int]], context_lens: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Shape columns of batches whose requests differ, from each batch's lengths.

    >>> shape = mixed_lengths([[8, 1]], [[0, 100]])
    >>> {name: values[0] for name, values in shape.items()}["context_sq_sum"]
    10000
    """
    context = [np.asarray(c, np.int64) for c in context_lens]
    return {
        "batch": [len(q) for q in query_lens],
        "query_sum": [int(sum(q)) for q in query_lens],
        "context_sum": [int(c.sum()) for c in context],
        "context_sq_sum": [int((c**2).sum()) for c in context],
        "context_max": [int(c.max(initial=0)) for c in context],
        "query_lens": [list(q) for q in query_lens],
        "context_lens": [list(c) for c in context_lens],
    }
