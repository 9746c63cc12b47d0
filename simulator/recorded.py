"""The schedule under recorded time: does the scheduler decide what the engine decided?

Arrivals at the engine's queue and the start and end of every step are the record's; the
batches are the scheduler's own. Its state is never re-synchronised with the record, so one
wrong decision shows in every step it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc

from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Batch, Scheduler
from simulator.scheduling.request import Request
from traces.bundle import Bundle

Rows = dict[str, int]  # request id -> tokens


@dataclass(slots=True)
class Agreement:
    """How many recorded steps had exactly the simulated batch; ``first`` tells what differed."""

    steps: int = 0
    equal: int = 0
    first: str | None = None
    differing: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of steps with equal batches; 1.0 if there were none."""
        return self.equal / self.steps if self.steps else 1.0


def replay_recorded(
    bundle: Bundle,
    requests: Sequence[Request],
    config: SchedulerConfig,
    make: Callable[[SchedulerConfig], Scheduler] = Scheduler,
) -> Agreement:
    """Drive one scheduler per replica with the times of ``bundle``.

    ``requests`` are those of the bundle, row by row; their arrival order at the queue is
    taken from ``queued_s``.
    """
    agreement = Agreement()
    table = bundle.requests
    queued = table.column("queued_s").to_pylist()
    replica_of = table.column("replica").to_pylist()
    aborted = {
        i: at
        for i, (s, at) in enumerate(
            zip(table.column("status").to_pylist(), table.column("finished_s").to_pylist(),
                strict=True)
        )
        if s == "aborted" and at is not None
    }  # fmt: skip
    for replica in sorted({r for r in replica_of if r is not None}):
        mine = [i for i, r in enumerate(replica_of) if r == replica and queued[i] is not None]
        inputs = sorted(
            [(queued[i], 0, i) for i in mine] + [(aborted[i], 1, i) for i in mine if i in aborted]
        )
        _replay_one(bundle, replica, requests, inputs, make(config), agreement)
    return agreement


def _replay_one(
    bundle: Bundle,
    replica: int,
    requests: Sequence[Request],
    inputs: list[tuple[float, int, int]],
    scheduler: Scheduler,
    agreement: Agreement,
) -> None:
    steps = bundle.table("steps").filter(pc.equal(bundle.table("steps").column("replica"), replica))
    numbers = steps.column("step").to_pylist()
    starts, ends = steps.column("start_s").to_pylist(), steps.column("end_s").to_pylist()
    recorded = _recorded_rows(bundle, replica)
    flight: list[tuple[float, Batch]] = []
    given = 0
    for number, start, end in zip(numbers, starts, ends, strict=True):
        # Ends come before starts at one time: the engine updates, then schedules again.
        while flight and flight[0][0] <= start:
            scheduler.update(flight.pop(0)[1])
        while given < len(inputs) and inputs[given][0] <= start:
            _, leaves, i = inputs[given]
            given += 1
            if leaves:
                scheduler.abort(requests[i])
            else:
                scheduler.add(requests[i])
        batch = scheduler.schedule()
        while not batch.rows and batch.preempted:
            batch = scheduler.schedule()
        flight.append((end, batch))
        _compare(agreement, replica, number, batch, recorded.get(number, {}))


def _recorded_rows(bundle: Bundle, replica: int) -> dict[int, Rows]:
    rows = bundle.table("step_requests")
    rows = rows.filter(pc.equal(rows.column("replica"), replica))
    recorded: dict[int, Rows] = {}
    for step, name, tokens in zip(
        rows.column("step").to_pylist(),
        rows.column("request_id").to_pylist(),
        rows.column("scheduled_tokens").to_pylist(),
        strict=True,
    ):
        recorded.setdefault(step, {})[name] = tokens
    return recorded


def _compare(agreement: Agreement, replica: int, number: int, batch: Batch, recorded: Rows) -> None:
    simulated = {row.request.name: row.tokens for row in batch.rows}
    agreement.steps += 1
    if simulated == recorded:
        agreement.equal += 1
        return
    agreement.differing.append(number)
    if agreement.first is None:
        only_real = {k: v for k, v in recorded.items() if simulated.get(k) != v}
        only_ours = {k: v for k, v in simulated.items() if recorded.get(k) != v}
        agreement.first = (
            f"replica {replica}, step {number}: engine ran {only_real}, simulator {only_ours}"
        )
