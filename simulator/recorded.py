"""The schedule under recorded time: does the scheduler decide what the engine decided?

Arrivals at the engine's queue and the start and end of every step are the record's, and so
are the ends of KV transfers; the batches are the scheduler's own. Its state is never
re-synchronised with the record, so one wrong decision shows in every step it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Batch, Scheduler
from simulator.scheduling.request import Remote, Request
from traces.bundle import Bundle

Rows = dict[str, int]  # request id -> tokens
ADD, ABORT, LOADED, RELEASE = range(4)  # what is put into a scheduler
Input = tuple[float, int, int]  # seconds, which of these, row of the request


@dataclass(slots=True)
class Agreement:
    """How many recorded steps had exactly the simulated batch; ``first`` tells what differed.

    ``blocks`` counts those after whose scheduling as many KV blocks were free.
    """

    steps: int = 0
    equal: int = 0
    blocks: int = 0
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
    cluster = bundle.table("steps")["cluster"][0].as_py() if len(bundle.table("steps")) else ""
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
            [(queued[i], ADD, i) for i in mine]
            + [(aborted[i], ABORT, i) for i in mine if i in aborted]
        )
        _replay_one(bundle, (cluster, replica), requests, inputs, make(config), agreement)
    return agreement


def replay_recorded_pair(
    bundle: Bundle,
    requests: tuple[Sequence[Request], Sequence[Request]],
    configs: tuple[SchedulerConfig, SchedulerConfig],
    make: Callable[[SchedulerConfig], Scheduler] = Scheduler,
) -> dict[str, Agreement]:
    """Drive the schedulers of a prefill and a decode cluster with the times of ``bundle``.

    ``requests`` are its rows as either side has them (``disaggregation.setup.demands``).
    """
    table = bundle.requests
    names = {c["role"]: str(c["name"]) for c in bundle.manifest.deployment["clusters"]}
    moved = table.column("transfer_end_s").to_pylist()
    found = {}
    for role, asked, config, queue, home, kind in (
        ("prefill", requests[0], configs[0], "queued_s", "replica", RELEASE),
        ("decode", requests[1], configs[1], "decode_queued_s", "decode_replica", LOADED),
    ):
        agreement = found[names[role]] = Agreement()
        queued, homes = table.column(queue).to_pylist(), table.column(home).to_pylist()
        for replica in sorted({r for r in homes if r is not None}):
            mine = [i for i, r in enumerate(homes) if r == replica and queued[i] is not None]
            inputs = [(queued[i], ADD, i) for i in mine]
            inputs += [(moved[i], kind, i) for i in mine if moved[i] is not None]
            key = (names[role], replica)
            _replay_one(bundle, key, asked, sorted(inputs), make(config), agreement)
    return found


def _replay_one(
    bundle: Bundle,
    key: tuple[str, int],
    requests: Sequence[Request],
    inputs: list[Input],
    scheduler: Scheduler,
    agreement: Agreement,
) -> None:
    steps = _of(bundle, "steps", key)
    numbers = steps.column("step").to_pylist()
    starts, ends = steps.column("start_s").to_pylist(), steps.column("end_s").to_pylist()
    free = steps.column("free_blocks").to_pylist() if "free_blocks" in steps.column_names else []
    recorded = _recorded_rows(bundle, key)
    flight: list[tuple[float, Batch]] = []
    given = 0
    for at, (number, start, end) in enumerate(zip(numbers, starts, ends, strict=True)):
        # Ends come before starts at one time: the engine updates, then schedules again.
        while flight and flight[0][0] <= start:
            scheduler.update(flight.pop(0)[1])
        while given < len(inputs) and inputs[given][0] <= start:
            at_s, kind, i = inputs[given]
            given += 1
            if kind == LOADED and requests[i].remote == Remote.TO_LOAD:
                # the engine reserved its blocks in a step without tokens, which has no row
                # and which nobody who watches the steps is to count
                flight.append((at_s, Scheduler.schedule(scheduler)))
            _put(scheduler, kind, requests[i])
        batch = scheduler.schedule()
        while not batch.rows and batch.preempted:
            batch = scheduler.schedule()
        flight.append((end, batch))
        agreement.blocks += bool(free) and free[at] == scheduler.kv.free_blocks
        _compare(agreement, key, number, batch, recorded.get(number, {}))


def _put(scheduler: Scheduler, kind: int, request: Request) -> None:
    if kind == ADD:
        scheduler.add(request)
    elif kind == ABORT:
        scheduler.abort(request)
    elif kind == RELEASE and request.remote == Remote.KEPT:
        scheduler.release(request)
    elif kind == LOADED and request.remote == Remote.LOADING:
        scheduler.loaded(request)


def _of(bundle: Bundle, name: str, key: tuple[str, int]) -> pa.Table:
    """Rows of one replica of a cluster."""
    table = bundle.table(name)
    here = (pc.equal(table[c], value) for c, value in zip(("cluster", "replica"), key, strict=True))
    return table.filter(pc.and_(*here))


def _recorded_rows(bundle: Bundle, key: tuple[str, int]) -> dict[int, Rows]:
    rows = _of(bundle, "step_requests", key)
    recorded: dict[int, Rows] = {}
    for step, name, tokens in zip(
        rows.column("step").to_pylist(),
        rows.column("request_id").to_pylist(),
        rows.column("scheduled_tokens").to_pylist(),
        strict=True,
    ):
        recorded.setdefault(step, {})[name] = tokens
    return recorded


def _compare(
    agreement: Agreement, key: tuple[str, int], number: int, batch: Batch, recorded: Rows
) -> None:
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
            f"replica {key[1]}, step {number}: engine ran {only_real}, simulator {only_ours}"
        )
