"""What a simulation leaves behind, as the tables of a bundle.

Requests always; steps and their rows where asked for, handed on in pieces as they fill up,
so that memory does not grow with time. Within a replica steps are in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from simulator.clock import PS_PER_S
from simulator.demand import STATUS_NAMES, Demand
from simulator.engine.layout import Row, Step
from simulator.scheduling.request import Status
from traces.schema import TABLES

RECORDABLE = ("steps", "step_requests")
ROOM = {"steps": 1 << 16, "step_requests": 1 << 18}  # rows of a piece

Sink = Callable[[str, pa.Table], None]  # takes a piece of the table so named


class Recorder:
    """Buffers for the step tables in ``record``, and what happens to them when they are full.

    The engines write into ``steps`` and ``rows``, empty where not asked for.
    """

    def __init__(self, record: Sequence[str], cluster: str, demand: Demand, sink: Sink) -> None:
        room = {name: ROOM[name] * (name in record) for name in RECORDABLE}
        ranks = demand.config.lock_step_ranks
        seats = demand.config.max_num_seqs * ranks
        if room["step_requests"]:
            room["step_requests"] += seats
        self.steps = np.zeros(room["steps"], Step.dtype)
        self.rows = np.zeros(room["step_requests"], Row.dtype)
        self._demand = demand
        self._cluster = cluster
        self._sink = sink
        self._seats = seats
        self._at_once = 2 * ranks - (ranks == 1)  # with the last dummy batches of a wave

    def is_full(self, steps: int, rows: int) -> bool:
        """Whether the steps that end at one time may not fit."""
        full_steps = len(self.steps) and steps + self._at_once > len(self.steps)
        return bool(full_steps or (len(self.rows) and rows + self._seats > len(self.rows)))

    def flush(self, steps: int, rows: int) -> None:
        """Hand on the first ``steps`` and ``rows`` of the buffers; they may be overwritten."""
        if steps:
            self._sink("steps", self._steps_table(self.steps[:steps]))
        if rows:
            self._sink("step_requests", self._rows_table(self.rows[:rows]))

    def _steps_table(self, log: npt.NDArray[Any]) -> pa.Table:
        counts = ("replica", "step", "prefill_tokens", "running", "waiting", "free_blocks",
                  "preempted")  # fmt: skip
        columns = {
            "cluster": self._cluster_column(len(log)),
            **{name: pa.array(log[name]) for name in counts},
            **{f"{name}_s": seconds(log[f"{name}_ps"]) for name in ("start", "end", "forward")},
            "decode_tokens": pa.array(log["tokens"] - log["prefill_tokens"]),
            "padded_tokens": pa.array(log["tokens"]),
        }
        if self._demand.config.lock_step_ranks > 1 or self._demand.config.kv_role:
            # where KV is handed over the other side may step together: the columns are the same
            columns["dummy"] = pa.array(log["dummy"].astype(bool))
        return in_order("steps", columns)

    def _rows_table(self, log: npt.NDArray[Any]) -> pa.Table:
        names = {"replica": "replica", "step": "step", "scheduled_tokens": "tokens",
                 "computed_tokens": "computed", "emitted_tokens": "emits"}  # fmt: skip
        columns = {
            "cluster": self._cluster_column(len(log)),
            "request_id": self._demand.table["request_id"].take(pa.array(log["request"])),
            **{name: pa.array(log[field].astype(np.int64)) for name, field in names.items()},
        }
        return in_order("step_requests", columns)

    def _cluster_column(self, rows: int) -> pa.Array:
        return pa.repeat(self._cluster, rows)


class Collected:
    """A sink that keeps the pieces in memory."""

    def __init__(self) -> None:
        self._pieces: dict[str, list[pa.Table]] = {}

    def __call__(self, name: str, piece: pa.Table) -> None:
        self._pieces.setdefault(name, []).append(piece)

    def tables(self) -> dict[str, pa.Table]:
        """The tables, whole."""
        return {name: pa.concat_tables(pieces) for name, pieces in self._pieces.items()}


class Streamed:
    """A sink that appends each piece to the table's file in ``folder()``, as a row group."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __call__(self, name: str, piece: pa.Table) -> None:
        if name not in self._writers:
            file = self._folder() / TABLES[name].file
            self._writers[name] = pq.ParquetWriter(file, piece.schema, compression="zstd")
        self._writers[name].write_table(piece)

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()

    def discard(self) -> None:
        """Remove the files: nothing will make them a bundle."""
        self.close()
        for name in self._writers:
            (self._folder() / TABLES[name].file).unlink()


def seconds(values: npt.NDArray[np.int64]) -> pa.Array:
    """Picoseconds to float seconds; negative (never happened) becomes null."""
    return pa.array(values / PS_PER_S, mask=values < 0)


def in_order(table: str, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Columns as the bundle's table so named."""
    names = [c.name for c in TABLES[table].columns if c.name in columns]
    schema = TABLES[table].arrow_schema(names)
    return pa.table({name: columns[name] for name in names}).cast(schema)


def requests_table(demand: Demand, cluster: str) -> pa.Table:
    """The ``requests`` table of a simulation: the demand and what became of it.

    Rows are ordered by the arrival that happened (closed-loop load moves it).
    """
    records = demand.records
    sent = records["replica"] >= 0
    columns = {
        "arrival_s": seconds(records["arrival_ps"]),
        "output_tokens": pa.array(records["output"]),
        "cached_tokens": pa.array(np.maximum(records["cached_tokens"], 0)),
        "cluster": pa.repeat(cluster, len(demand)),
        "replica": pa.array(records["replica"], mask=~sent),
        "queued_s": seconds(records["queued_ps"]),
        "scheduled_s": seconds(records["first_scheduled_ps"]),
        "first_token_s": seconds(records["first_token_ps"]),
        "finished_s": seconds(records["finished_ps"]),
        "preemptions": pa.array(records["preemptions"]),
        "status": statuses(records["status"]),
    }
    return with_columns(demand.table, columns)


def statuses(numbers: npt.NDArray[np.int32]) -> pa.Array:
    """Names of ``Status`` numbers, as a bundle has them."""
    names = pa.array([STATUS_NAMES.get(Status(i), "unfinished") for i in range(len(Status))])
    return pa.DictionaryArray.from_arrays(
        pa.array(numbers.astype(np.int8)), names
    ).dictionary_decode()


def with_columns(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    """Requests with these columns, old or new, and by arrival again."""
    for name, values in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    arrivals = table["arrival_s"].to_numpy()
    if (np.diff(arrivals) < 0).any():
        table = table.take(pa.array(np.argsort(arrivals, kind="stable")))
    return table
