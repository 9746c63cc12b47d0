"""One engine in time: when it schedules, how long its step runs, what it hands out.

Synchronously (vLLM's ``EngineCore.step``)::

    arrivals -> inbox        |<-host-><-forward->|<-gap->|
    wake: drain, schedule ---^     update, tokens^       ^--- wake

Asynchronously (``step_with_batch_queue``, depth 2) the host schedules step n + 1 while the
device runs step n, so a request that arrives during step n first runs in step n + 2.

With nothing to run while requests wait for their KV, or for blocks kept for another engine,
vLLM polls its connector; here the replica is dormant until it is notified.

This is the plain form, around the reference scheduler; ``engine/advance.py`` is its equal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from simulator.clock import NEVER
from simulator.scheduling.reference import Batch, Scheduler
from simulator.scheduling.request import MAX_PREEMPTIONS, Remote, Request, Status
from simulator.step_time.base import StepTimeModel, StepTimes, shape_of
from traces.errors import ConfigError, InvariantError

NOTHING = StepTimes(0, 0, 0)


@dataclass(slots=True)
class Step:
    """A step in flight: its batch, its times in ps, and the queue as schedule() left it."""

    batch: Batch
    times: StepTimes
    start_ps: int
    end_ps: int
    running: int
    waiting: int
    free_blocks: int


class Replica:
    """A scheduler, its step-time model and its clock.

    ``next_ps`` is the time of its next event, which ``advance`` processes; ``arrive`` brings
    a request in between, ``notify`` what its KV connector reports. ``on_step(replica, step)``
    is told when a step ends, ``on_finish(replica, request, now_ps)`` when a request does,
    ``on_load(replica, request, at_ps)`` when the load of its KV begins.

    That is after the forward pass has been launched, which on the CPU platform is when it
    has ended: ``loads_late``.
    """

    def __init__(
        self,
        index: int,
        scheduler: Scheduler,
        model: StepTimeModel,
        on_finish: Callable[[Replica, Request, int], None],
        on_step: Callable[[Replica, Step], None] | None = None,
        on_load: Callable[[Replica, Request, int], None] | None = None,
        *,
        loads_late: bool = False,
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self.model = model
        self.on_step = on_step
        self.on_finish = on_finish
        self.on_load = on_load
        self.next_ps = NEVER
        self.ending = False  # the next event is a step's end, else a wake-up
        self.unfinished = 0
        self.steps = 0
        self._frontend_ps = model.frontend_ps
        self._inbox: deque[tuple[int, Request]] = deque()
        self._flight: deque[Step] = deque()
        self._depth = scheduler.config.max_concurrent_batches
        self._host_free_ps = 0
        self._device_free_ps = 0
        self._empty_in_a_row = 0
        self._dormant = False
        self._loads_late = loads_late

    @property
    def waiting(self) -> int:
        return self.scheduler.waits

    @property
    def running(self) -> int:
        return len(self.scheduler.running)

    @property
    def kv_usage(self) -> float:
        kv = self.scheduler.kv
        return 1.0 - kv.free_blocks / (kv.blocks - 1)

    def arrive(self, request: Request, at_ps: int) -> None:
        """A request was sent here; it reaches the engine's input queue a little later."""
        request.replica = self.index
        self.unfinished += 1
        due = at_ps + self._frontend_ps
        self._inbox.append((due, request))
        if self._dormant or not (self._flight or self.scheduler.has_requests):
            self.next_ps = min(self.next_ps, max(due, self._host_free_ps))

    def notify(self, request: Request, at_ps: int) -> None:
        """The KV of a request has come, or its kept blocks are needed no longer."""
        if request.remote == Remote.KEPT:
            self.scheduler.release(request)
        else:
            self.scheduler.loaded(request)
        if self._dormant:
            self.next_ps = min(self.next_ps, max(at_ps, self._host_free_ps))

    def advance(self) -> None:
        """Process the event at ``next_ps``."""
        if self.ending:
            self._end_step(self.next_ps)
        else:
            self._wake(self.next_ps)

    def _wake(self, now: int) -> None:
        while self._inbox and self._inbox[0][0] <= now:
            request = self._inbox.popleft()[1]
            request.queued_ps = now
            self.scheduler.add(request)
        self._dormant = False
        if self.scheduler.has_requests:
            ran = self._schedule(now)
            if self._is_stalled():
                self._flight.clear()
                self._dormant = True
            elif len(self._flight) < self._depth and (ran or self.scheduler.has_requests):
                self.next_ps = self._host_free_ps  # room for one more batch: go on at once
                return
        if self._flight:
            self.ending = True
            self.next_ps = max(self._flight[0].end_ps, self._host_free_ps)
        else:
            self.next_ps = max(self._inbox[0][0], now) if self._inbox else NEVER

    def _is_stalled(self) -> bool:
        """Whether nothing runs until another engine has given or taken KV."""
        return (len(self.scheduler.holding) > 0 or self.scheduler.kept > 0) and not any(
            step.batch.tokens for step in self._flight
        )

    def _schedule(self, now: int) -> bool:
        scheduler = self.scheduler
        batch = scheduler.schedule()
        for request in batch.preempted:
            if request.preemptions > MAX_PREEMPTIONS:
                raise ConfigError(
                    f"request {request.name!r} was preempted {MAX_PREEMPTIONS} times: with "
                    f"{scheduler.kv.blocks - 1} KV blocks requests evict each other for ever"
                )
        if not batch.tokens and batch.preempted:  # everything preempted: retry at once
            return self._schedule(now)
        times = self.model.times(shape_of(batch)) if batch.tokens else NOTHING
        if self._depth == 1:
            end = now + times.host + times.forward
        else:
            self._host_free_ps = now + times.host
            end = max(self._host_free_ps, self._device_free_ps) + times.forward
            self._device_free_ps = end
        for row in batch.rows:
            if row.request.first_scheduled_ps < 0:
                row.request.first_scheduled_ps = now
        for request in batch.loads:
            assert self.on_load is not None
            late = self._loads_late and batch.tokens > 0
            self.on_load(self, request, end if late else now + times.host)
        self._flight.append(
            Step(batch, times, now, end, self.running, self.waiting, scheduler.kv.free_blocks)
        )
        fine = batch.tokens or self._is_stalled()
        self._empty_in_a_row = 0 if fine else self._empty_in_a_row + 1
        if self._empty_in_a_row > self._depth + 2:
            raise InvariantError(self._stuck(now))
        return batch.tokens > 0

    def _end_step(self, now: int) -> None:
        step = self._flight.popleft()
        self.ending = False
        step.end_ps = now
        if step.batch.tokens:
            if self.on_step is not None:
                self.on_step(self, step)
            self.steps += 1
        for request in self.scheduler.update(step.batch):
            if request.first_token_ps < 0:
                request.first_token_ps = now
            if request.status == Status.FINISHED:
                request.finished_ps = now
                self.unfinished -= 1
                self.on_finish(self, request, now)
        self._host_free_ps = now + step.times.gap
        if self._flight or self.scheduler.has_requests:
            self.next_ps = self._host_free_ps
        elif self._inbox:
            self.next_ps = max(self._inbox[0][0], self._host_free_ps)
        else:
            self.next_ps = NEVER

    def _stuck(self, now: int) -> str:
        first = self.scheduler.waiting.peek() if self.waiting else None
        return (
            f"replica {self.index} at {now} ps can schedule nothing: {self.running} running, "
            f"{self.waiting} waiting (first: {first and first.name}, {first and first.tokens} "
            f"tokens), {self.scheduler.kv.free_blocks} free blocks"
        )
