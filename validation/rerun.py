"""One engine in time, plainly: a scheduler, the times of its steps, requests that reach it.

The ladder runs it with measured and predicted parts in every mixture. It follows the same
rules as the simulator's engine, of which it is no part: with everything predicted both must
give the same times, which the ladder shows as its last term.

Synchronously, and asynchronously (depth 2)::

    look, schedule |<-host->|<-forward->| update |<-gap->| look, schedule
    look, schedule |<-host->| look, schedule ... the device works off what is scheduled
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from simulator.scheduling.reference import Batch
from simulator.scheduling.request import Request, Status
from simulator.step_time.base import StepTimes, shape_of
from traces.errors import InvariantError
from validation.predicting import Shapes

NOTHING = StepTimes(0, 0, 0)
EMPTY_STEPS = 5  # empty batches in a row that no scheduler needs


class Decider(Protocol):
    """What decides the batches: the simulator's scheduler, or a record."""

    @property
    def has_requests(self) -> bool:
        """Whether ``schedule`` may have something to run."""

    def add(self, request: Request) -> None:
        """A request was taken from the engine's input queue."""

    def schedule(self) -> Batch:
        """The next step's batch."""

    def update(self, batch: Batch) -> list[Request]:
        """The batch's step ended; the requests that got their first or last token."""


class StepClock(Protocol):
    """How long the steps of one engine last."""

    def times(self, step: int, shapes: Shapes, *, halved: bool = False) -> StepTimes:
        """Times of the engine's step number ``step``; ``shapes`` are its ranks'."""


@dataclass(slots=True)
class _Flight:
    batch: Batch
    gap_ps: int
    end_ps: int


class Engine:
    """Runs ``requests``, pairs of (picosecond at the input queue, request) in that order.

    What becomes of a request is left in its ``first_scheduled_ps``, ``first_token_ps`` and
    ``finished_ps``. ``depth`` is the number of batches that may be in flight.
    """

    def __init__(
        self,
        requests: Sequence[tuple[int, Request]],
        decider: Decider,
        clock: StepClock,
        depth: int = 1,
    ) -> None:
        self._inbox = deque(requests)
        self._decider = decider
        self._clock = clock
        self._depth = depth
        self._flight: deque[_Flight] = deque()
        self._host_free = self._device_free = 0
        self._steps = self._empty = 0

    def run(self) -> None:
        """Run until nothing is left; raises InvariantError if requests remain that never run."""
        now: int | None = self._inbox[0][0] if self._inbox else None
        while now is not None:
            now = self._wake(now)

    def _wake(self, now: int) -> int | None:
        """Look into the queue at ``now`` and schedule; returns the time of the next look."""
        while self._inbox and self._inbox[0][0] <= now:
            request = self._inbox.popleft()[1]
            request.queued_ps = now
            self._decider.add(request)
        if self._decider.has_requests:
            ran = self._schedule(now)
            if len(self._flight) < self._depth and (ran or self._decider.has_requests):
                return self._host_free
        if self._flight:
            self._end_step()
            if self._flight or self._decider.has_requests:
                return self._host_free
        return max(self._inbox[0][0], self._host_free) if self._inbox else None

    def _schedule(self, now: int) -> bool:
        batch = self._decider.schedule()
        while not batch.tokens and batch.preempted:  # everything preempted: retry at once
            batch = self._decider.schedule()
        times = NOTHING
        if batch.tokens:
            times = self._clock.times(self._steps, (shape_of(batch),))
            self._steps += 1
        self._empty = 0 if batch.tokens else self._empty + 1
        if self._empty > EMPTY_STEPS:
            raise InvariantError(f"step {self._steps} of the ladder's engine can run nothing")
        end = now + times.host
        if self._depth > 1:
            self._host_free = end
            end = max(end, self._device_free)
            self._device_free = end + times.alone
        for row in batch.rows:
            if row.request.first_scheduled_ps < 0:
                row.request.first_scheduled_ps = now
        self._flight.append(_Flight(batch, times.gap, end + times.alone))
        return batch.tokens > 0

    def _end_step(self) -> None:
        step = self._flight.popleft()
        now = max(step.end_ps, self._host_free) if self._depth > 1 else step.end_ps
        for request in self._decider.update(step.batch):
            if request.first_token_ps < 0:
                request.first_token_ps = now
            if request.status == Status.FINISHED:
                request.finished_ps = now
        self._host_free = now + step.gap_ps
