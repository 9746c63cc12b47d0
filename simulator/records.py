"""What a simulation leaves behind, as the tables of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from simulator.clock import PS_PER_S
from simulator.replica import Replica, Step
from simulator.scheduling.request import Request, Status

STATUS_NAMES = {Status.FINISHED: "finished", Status.ABORTED: "aborted"}
RECORDABLE = ("steps", "step_requests")


def seconds(ps: Iterable[int]) -> pa.Array:
    """Picoseconds to float seconds; negative (never happened) becomes null."""
    values = np.fromiter(ps, np.int64)
    return pa.array(values / PS_PER_S, mask=values < 0)


class Recorder:
    """Collects the rows of the step tables that were asked for."""

    def __init__(self, record: Sequence[str], cluster: str) -> None:
        self.cluster = cluster
        self._steps: list[tuple[int, ...]] | None = [] if "steps" in record else None
        self._rows: list[tuple[int, ...]] | None = [] if "step_requests" in record else None
        self._names: list[str] = []

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
                self._names.append(row.request.name)
                self._rows.append(
                    (replica.index, replica.steps, row.tokens, row.computed, int(row.emits))
                )

    def tables(self) -> dict[str, pa.Table]:
        """The recorded tables, ordered by replica and step."""
        tables = {}
        if self._steps is not None:
            tables["steps"] = self._steps_table(self._steps)
        if self._rows is not None:
            data = np.array(self._rows, np.int64).reshape(-1, 5)
            order = np.lexsort((data[:, 1], data[:, 0]))
            names = ("replica", "step", "scheduled_tokens", "computed_tokens", "emitted_tokens")
            columns = {n: pa.array(data[order, i]) for i, n in enumerate(names)}
            ids = pa.array(self._names, pa.string()).take(pa.array(order))
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


def requests_table(
    demand: pa.Table, requests: Sequence[Request], cluster: str
) -> pa.Table:
    """The ``requests`` table of a simulation: the demand and what became of it.

    Rows are ordered by the arrival that happened (they move under closed-loop load).
    """
    order = sorted(range(len(requests)), key=lambda i: (requests[i].arrival_ps, i))
    done = [requests[i] for i in order]
    table = demand.take(pa.array(order))
    outcome = {
        "arrival_s": seconds(r.arrival_ps for r in done),
        "output_tokens": pa.array([r.output for r in done]),
        "cached_tokens": pa.array([max(0, r.cached_tokens) for r in done]),
        "cluster": pa.array([cluster] * len(done), pa.string()),
        "replica": pa.array([r.replica for r in done]),
        "queued_s": seconds(r.queued_ps for r in done),
        "scheduled_s": seconds(r.first_scheduled_ps for r in done),
        "first_token_s": seconds(r.first_token_ps for r in done),
        "finished_s": seconds(r.finished_ps for r in done),
        "preemptions": pa.array([r.preemptions for r in done]),
        "status": pa.array([STATUS_NAMES.get(r.status, "unfinished") for r in done]),
    }
    for name, values in outcome.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, values)
        else:
            table = table.append_column(name, values)
    return table
