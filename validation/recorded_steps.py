"""The steps of one engine as a capture recorded them: batches, shapes, times.

Times are whole picoseconds that add up to the recorded stamps::

    synchronous   start |<-- host -->|<-- forward -->| end |<-- gap -->| next start
    asynchronous  forward runs from the end of the step before, if that comes later; host is
                  the time to the next look while the queue fills, gap that after an end
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.clock import PS_PER_S
from simulator.scheduling.reference import Batch, Row
from simulator.scheduling.request import Request, Status
from simulator.step_time.samples import shapes_of
from traces.bundle import Bundle
from traces.metrics import Floats, column
from validation.predicting import Shapes

PARTS = ("forward", "host", "gap")

Ints = npt.NDArray[np.int64]
Rows = list[tuple[str, int, int, int]]  # request id, computed, scheduled and emitted tokens


@dataclass(frozen=True, slots=True)
class Record:
    """One rank's steps that ran tokens or a dummy batch, or an engine's whose ranks step together.

    ``number`` is each step's in the bundle, ``rows`` of all ranks, ``shapes`` one a rank.
    ``parts`` are picoseconds by name of ``PARTS``, ``(n_steps,)``; ``gap`` is -1 where the
    engine was idle after the step, and ``idle`` for how long, at most that of the gap, which
    nobody saw end.
    """

    number: list[int]
    start_s: list[float]
    end_s: list[float]
    rows: list[Rows]
    shapes: list[Shapes]
    parts: dict[str, Ints]
    idle: Ints

    def __len__(self) -> int:
        return len(self.shapes)


NO_STEPS = Record(
    [], [], [], [], [], {part: np.empty(0, np.int64) for part in PARTS}, np.empty(0, np.int64)
)


def read_record(
    bundle: Bundle, cluster: str, replica: int, depth: int, ready_s: Floats | None = None
) -> Record:
    """The record of one replica; ``depth`` batches may be in flight.

    ``ready_s`` is when each request of the bundle could first run there, ``queued_s`` if it is
    not given: an engine with none that can run is idle.
    """

    def mine(table: pa.Table) -> pa.Table:
        here = pc.and_(pc.equal(table["cluster"], cluster), pc.equal(table["replica"], replica))
        return table.filter(here)

    steps, rows = mine(bundle.table("steps")), mine(bundle.table("step_requests"))
    kept = pc.is_in(steps["step"], value_set=rows["step"].combine_chunks().unique())
    if "dummy" in steps.column_names:
        kept = pc.or_(kept, pc.fill_null(steps["dummy"], False))
    steps = steps.filter(kept)
    number = steps["step"].to_numpy()
    index = np.searchsorted(number, rows["step"].to_numpy())
    columns = ("request_id", "computed_tokens", "scheduled_tokens")
    emitted = pc.fill_null(rows["emitted_tokens"], 0).to_pylist()
    listed: list[Rows] = [[] for _ in range(len(steps))]
    for i, *row in zip(index, *(rows[c].to_pylist() for c in columns), emitted, strict=True):
        listed[i].append((row[0], row[1], row[2], row[3]))
    ids = bundle.requests["request_id"].combine_chunks()
    where = pc.index_in(rows["request_id"], value_set=ids).to_numpy()
    if not len(steps):
        return NO_STEPS
    first_queued = np.full(len(steps), np.inf)
    ready_s = column(bundle.requests, "queued_s") if ready_s is None else ready_s
    np.minimum.at(first_queued, index, ready_s[where])
    return Record(
        number.tolist(),
        steps["start_s"].to_pylist(),
        steps["end_s"].to_pylist(),
        listed,
        [(shape,) for shape in shapes_of(rows, index, len(steps))],
        *step_parts(steps, first_queued, depth),
    )


def step_parts(
    steps: pa.Table, first_queued: npt.NDArray[np.float64], depth: int
) -> tuple[dict[str, Ints], Ints]:
    """``Record.parts`` and ``idle`` of an engine's steps, in order.

    ``first_queued``: when the first of each step's requests was, seconds; infinite of none.
    """
    start, end = (_ps(steps[c].to_numpy()) for c in ("start_s", "end_s"))
    previous = np.append(0, end[:-1])
    queued = _ps(np.where(np.isfinite(first_queued), first_queued, 0.0))
    idle = queued > previous  # nothing was there when the step before ended
    following = np.searchsorted(start, end, side="left")  # the first step begun after each end
    busy = np.append(~idle, False)[following]
    until_next = np.append(start, end[-1])[following] - end
    gap, rest = np.where(busy, until_next, -1), np.where(busy, 0, until_next)
    if depth > 1:
        later = np.append(start[1:], np.iinfo(np.int64).max)
        host = np.where((previous <= start) & (later < end), later - start, 0)
        forward = end - np.maximum(start + host, previous)
        return {"forward": forward, "host": host, "gap": gap}, rest
    ran = column(steps, "forward_s")  # where not recorded, the whole step is forward
    forward = np.minimum(np.where(np.isfinite(ran), _ps(ran), end - start), end - start)
    return {"forward": forward, "host": end - start - forward, "gap": gap}, rest


def _ps(seconds: npt.NDArray[np.float64]) -> Ints:
    known = np.where(np.isfinite(seconds), seconds, 0.0)
    ps: Ints = np.rint(known * PS_PER_S).astype(np.int64)
    return ps


class RecordedBatches:
    """Decides what the engine decided, each batch as soon as its requests have arrived."""

    def __init__(self, record: Record, requests: dict[str, Request]) -> None:
        self._batches = iter(record.rows)
        self._requests = requests
        self._emitted: list[dict[int, int]] = []
        self._arrived: set[str] = set()
        self._next: Rows | None = next(self._batches, None)

    @property
    def has_requests(self) -> bool:
        """Whether all requests of the next batch have arrived."""
        return self._next is not None and all(
            row[0] in self._arrived or row[0] not in self._requests for row in self._next
        )

    def add(self, request: Request) -> None:
        self._arrived.add(request.name)

    def schedule(self) -> Batch:
        batch, emitted = Batch(), {}
        for name, computed, tokens, given in self._next or ():
            if (request := self._requests.get(name)) is not None:
                batch.rows.append(Row(request, computed, tokens, given > 0))
                batch.tokens += tokens
                emitted[request.index] = given
        self._emitted.append(emitted)
        self._next = next(self._batches, None)
        return batch

    def update(self, batch: Batch) -> list[Request]:
        events = []
        emitted = self._emitted.pop(0)
        for request in (row.request for row in batch.rows if row.emits):
            first = request.output == 0
            request.output += emitted[request.index]
            if request.output >= request.max_tokens:
                request.status = Status.FINISHED
            if first or request.status == Status.FINISHED:
                events.append(request)
        return events
