"""What a simulation leaves behind, as the tables of a bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulator.clock import PS_PER_S
from simulator.demand import STATUS_NAMES, Demand
from simulator.replica import Replica, Step
from simulator.scheduling.request import Status

RECORDABLE = ("steps", "step_requests")


def seconds(values: npt.NDArray[np.int64]) -> pa.Array:
    """Picoseconds to float seconds; negative (never happened) becomes null."""
    return pa.array(values / PS_PER_S, mask=values < 0)


class Recorder:
    """Collects the rows of the step tables that were asked for."""

    def __init__(self, record: Sequence[str], cluster: str, demand: Demand) -> None:
        self.cluster = cluster
        self._demand = demand
        self._steps: list[tuple[int, ...]] | None = [] if "steps" in record else None
        self._rows: list[tuple[int, ...]] | None = [] if "step_requests" in record else None

    def on_step(self, replica: Replica, step: Step) -> None:
        """Note a step that ended."""
        batch = step.batch
        if self._steps is not None:
            prefill = sum(r.tokens for r in batch.rows if r.computed < r.request.prompt)
            self._steps.append(
                (replica.index, replica.steps, step.start_ps, step.end_ps, step.times.forward,
                 prefill, batch.tokens - prefill, batch.tokens, step.running, step.waiting,
                 step.free_blocks, len(batch.preempted))
            )  # fmt: skip
        if self._rows is not None:
            for row in batch.rows:
                self._rows.append(
                    (replica.index, replica.steps, row.tokens, row.computed, int(row.emits),
                     row.request.index)
                )  # fmt: skip

    def tables(self) -> dict[str, pa.Table]:
        """The recorded tables, ordered by replica and step."""
        tables = {}
        if self._steps is not None:
            tables["steps"] = self._steps_table(self._steps)
        if self._rows is not None:
            data = np.array(self._rows, np.int64).reshape(-1, 6)
            order = np.lexsort((data[:, 1], data[:, 0]))
            names = ("replica", "step", "scheduled_tokens", "computed_tokens", "emitted_tokens")
            columns = {n: pa.array(data[order, i]) for i, n in enumerate(names)}
            ids = self._demand.table.column("request_id").take(pa.array(data[order, 5]))
            tables["step_requests"] = pa.table(
                {"cluster": self._cluster(len(order)), **columns, "request_id": ids}
            )
        return tables

    def _steps_table(self, steps: list[tuple[int, ...]]) -> pa.Table:
        data = np.array(steps, np.int64).reshape(-1, 12)
        data = data[np.lexsort((data[:, 1], data[:, 0]))]
        names = (
            "replica", "step", "start_s", "end_s", "forward_s", "prefill_tokens", "decode_tokens",
            "padded_tokens", "running", "waiting", "free_blocks", "preempted",
        )  # fmt: skip
        columns = {
            n: seconds(data[:, i]) if n.endswith("_s") else pa.array(data[:, i])
            for i, n in enumerate(names)
        }
        return pa.table({"cluster": self._cluster(len(data)), **columns})

    def _cluster(self, rows: int) -> pa.Array:
        return pa.array([self.cluster] * rows, pa.string())


def requests_table(demand: Demand, cluster: str) -> pa.Table:
    """The ``requests`` table of a simulation: the demand and what became of it.

    Rows are ordered by the arrival that happened (closed-loop load moves it).
    """
    outcome = {name: np.frombuffer(values, np.int64) for name, values in demand.outcome.items()}
    names = np.array([STATUS_NAMES.get(Status(i), "unfinished") for i in range(len(Status))])
    columns = {
        "arrival_s": seconds(outcome["arrival_ps"]),
        "output_tokens": pa.array(outcome["output"]),
        "cached_tokens": pa.array(np.maximum(outcome["cached_tokens"], 0)),
        "cluster": pa.array(np.full(len(demand), cluster)),
        "replica": pa.array(outcome["replica"]),
        "queued_s": seconds(outcome["queued_ps"]),
        "scheduled_s": seconds(outcome["first_scheduled_ps"]),
        "first_token_s": seconds(outcome["first_token_ps"]),
        "finished_s": seconds(outcome["finished_ps"]),
        "preemptions": pa.array(outcome["preemptions"]),
        "status": pa.array(names[outcome["status"]]),
    }
    table = demand.table
    for name, values in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    if (np.diff(outcome["arrival_ps"]) < 0).any():
        table = table.take(pa.array(np.argsort(outcome["arrival_ps"], kind="stable")))
    return table
