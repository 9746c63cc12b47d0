"""One engine whose ranks step together, plainly: what ``rerun`` is to an engine of one.

Ranks step in waves, with dummy batches where they have nothing to run; the rule is told, and
mirrored, in ``simulator/lockstep.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.lockstep import dummy_shape, runs_halves
from simulator.scheduling.reference import Batch, Scheduler
from simulator.scheduling.request import Request, Status
from simulator.step_time.base import shape_of
from validation.rerun import StepClock


@dataclass(slots=True)
class _Flight:
    batches: list[Batch]
    gap_ps: int
    end_ps: int


class RanksEngine:
    """Runs each rank's ``inboxes``, pairs of (picosecond at its queue, request) in that order.

    What becomes of a request is left in it, as ``rerun.Engine`` leaves it.
    """

    def __init__(
        self,
        inboxes: Sequence[Sequence[tuple[int, Request]]],
        schedulers: Sequence[Scheduler],
        clock: StepClock,
    ) -> None:
        self._inboxes = [deque(inbox) for inbox in inboxes]
        self._schedulers = list(schedulers)
        self._clock = clock
        self._config = schedulers[0].config
        self._flight: deque[_Flight] = deque()
        self._host_free = self._device_free = 0
        self._steps = 0

    def run(self) -> None:
        """Run until no rank has anything left."""
        while any(self._inboxes):
            arrival = min(inbox[0][0] for inbox in self._inboxes if inbox)
            self._wave(max(arrival, self._host_free))

    def _wave(self, now: int) -> None:
        """Step together until all agree that nothing is left."""
        waves = 0
        while True:
            self._drain(now)
            self._begin(now)
            if len(self._flight) >= self._config.max_concurrent_batches:
                now = max(self._flight[0].end_ps, self._host_free)
                self._host_free = now + self._end(now)
            waves += 1
            now = self._host_free
            if waves != 1 and waves % self._config.dp_sync_interval:
                continue
            if not any(scheduler.has_requests for scheduler in self._schedulers):
                break
        while self._flight:  # dummy batches still on the device
            self._end(self._flight[0].end_ps)

    def _drain(self, now: int) -> None:
        for inbox, scheduler in zip(self._inboxes, self._schedulers, strict=True):
            while inbox and inbox[0][0] <= now:
                request = inbox.popleft()[1]
                request.queued_ps = now
                scheduler.add(request)

    def _begin(self, now: int) -> None:
        batches = [_batch(scheduler) for scheduler in self._schedulers]
        shapes = tuple(shape_of(b) if b.tokens else dummy_shape() for b in batches)
        halved = runs_halves(self._config, shapes)
        times = self._clock.times(self._steps, shapes, halved=halved)
        self._steps += 1
        end = now + times.host + times.alone
        if self._config.max_concurrent_batches > 1:
            self._host_free = now + times.host
            end = max(self._host_free, self._device_free) + times.alone
            self._device_free = end
        for row in (row for batch in batches for row in batch.rows):
            if row.request.first_scheduled_ps < 0:
                row.request.first_scheduled_ps = now
        self._flight.append(_Flight(batches, times.gap, end))

    def _end(self, now: int) -> int:
        """The oldest step in flight ended; returns the gap after it."""
        step = self._flight.popleft()
        for scheduler, batch in zip(self._schedulers, step.batches, strict=True):
            for request in scheduler.update(batch):
                if request.first_token_ps < 0:
                    request.first_token_ps = now
                if request.status == Status.FINISHED:
                    request.finished_ps = now
        return step.gap_ps


def _batch(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule() if scheduler.has_requests else Batch()
    while not batch.tokens and batch.preempted:  # everything preempted: retry at once
        batch = scheduler.schedule()
    return batch
