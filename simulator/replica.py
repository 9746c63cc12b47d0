"""One engine in time: when it schedules, how long its step runs, what it hands out.

Synchronously (vLLM's ``EngineCore.step``)::

    arrivals -> inbox        |<-host-><-forward->|<-gap->|
    wake: drain, schedule ---^     update, tokens^       ^--- wake

Asynchronously (``step_with_batch_queue``, depth 2) the host schedules step n + 1 while the
device runs step n, so a request that arrives during step n first runs in step n + 2.

With a pipeline (``step_with_batch_queue`` too, synchronous, as many batches as stages) a
batch enters a stage when it has left the one before and the batch before it has left this
one; a decoding request is in one batch at a time, a prompt's chunks may be in several::

    stage 0   |-1-||-2-|     |-3-|      3 waits for what 1 sampled: a bubble
    stage 1        |-1-||-2-|     |-3-|

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
from simulator.step_time.base import StepTimeModel, StepTimes, draw_of, shape_of
from traces.errors import ConfigError, InvariantError

NOTHING = StepTimes(0, 0, 0)  # of a step without a token


@dataclass(slots=True)
class Step:
    """A step in flight: its batch, its times in ps, and the queue as schedule() left it.

    ``dummy``: run by a lock-step rank that had nothing to run.
    """

    batch: Batch
    times: StepTimes
    start_ps: int
    end_ps: int
    forward_ps: int
    running: int
    waiting: int
    free_blocks: int
    dummy: bool = False


class Rank:
    """A scheduler, its input queue and its steps in flight; it has no clock of its own.

    ``on_step(rank, step)`` is told when a step ends, ``on_finish(rank, request, now_ps)``
    when a request does, ``on_load(rank, request, at_ps)`` when the load of its KV begins.

    That is after the forward pass has been launched, which on the CPU platform is when it
    has ended: ``loads_late``.
    """

    def __init__(
        self,
        index: int,
        scheduler: Scheduler,
        frontend_ps: int,
        on_finish: Callable[[Rank, Request, int], None],
        on_step: Callable[[Rank, Step], None] | None = None,
        on_load: Callable[[Rank, Request, int], None] | None = None,
        *,
        loads_late: bool = False,
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self.on_step = on_step
        self.on_finish = on_finish
        self.on_load = on_load
        self.unfinished = 0
        self.steps = 0
        self.flight: deque[Step] = deque()
        self._frontend_ps = frontend_ps
        self._inbox: deque[tuple[int, Request]] = deque()
        self._empty_in_a_row = 0
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

    def receive(self, request: Request, at_ps: int) -> int:
        """A request was sent here; returns when it reaches the engine's input queue."""
        request.replica = self.index
        self.unfinished += 1
        due = at_ps + self._frontend_ps
        self._inbox.append((due, request))
        return due

    def inbox_ps(self, earliest: int) -> int:
        """When the next request reaches the input queue, but not before ``earliest``."""
        return max(self._inbox[0][0], earliest) if self._inbox else NEVER

    def drain(self, now: int) -> None:
        """Requests that have reached the input queue enter the scheduler."""
        while self._inbox and self._inbox[0][0] <= now:
            request = self._inbox.popleft()[1]
            request.queued_ps = now
            self.scheduler.add(request)

    def notify(self, request: Request) -> None:
        """The KV of a request has come, or its kept blocks are needed no longer."""
        if request.remote == Remote.KEPT:
            self.scheduler.release(request)
        else:
            self.scheduler.loaded(request)

    def is_stalled(self) -> bool:
        """Whether nothing runs until another engine has given or taken KV."""
        return (len(self.scheduler.holding) > 0 or self.scheduler.kept > 0) and not any(
            step.batch.tokens for step in self.flight
        )

    def plan(self, now: int) -> Batch:
        """The next step's batch; notes whom it runs for the first time."""
        scheduler = self.scheduler
        batch = scheduler.schedule()
        for request in batch.preempted:
            if request.preemptions > MAX_PREEMPTIONS:
                raise ConfigError(
                    f"request {request.name!r} was preempted {MAX_PREEMPTIONS} times: with "
                    f"{scheduler.kv.blocks - 1} KV blocks requests evict each other for ever"
                )
        if not batch.tokens and batch.preempted:  # everything preempted: retry at once
            return self.plan(now)
        for row in batch.rows:
            if row.request.first_scheduled_ps < 0:
                row.request.first_scheduled_ps = now
        fine = batch.tokens or self.is_stalled()
        self._empty_in_a_row = 0 if fine else self._empty_in_a_row + 1
        if self._empty_in_a_row > scheduler.config.max_concurrent_batches + 2:
            raise InvariantError(self._stuck(now))
        return batch

    def launch(self, batch: Batch, times: StepTimes, start: int, end: int, dummy: bool) -> None:
        """A step is in flight; the loads it begins do so now or when it ends."""
        for request in batch.loads:
            assert self.on_load is not None
            late = self._loads_late and (batch.tokens > 0 or dummy)
            self.on_load(self, request, end if late else start + times.host)
        free = self.scheduler.kv.free_blocks
        forward = times.alone + times.hop * (len(self.scheduler.config.stage_layers) - 1)
        step = Step(batch, times, start, end, forward, self.running, self.waiting, free, dummy)
        self.flight.append(step)

    def end_oldest(self, now: int) -> Step:
        """The oldest step in flight ended: hand out its tokens."""
        step = self.flight.popleft()
        step.end_ps = now
        if step.batch.tokens or step.dummy:
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
        return step

    def _stuck(self, now: int) -> str:
        first = self.scheduler.waiting.peek() if self.waiting else None
        return (
            f"replica {self.index} at {now} ps can schedule nothing: {self.running} running, "
            f"{self.waiting} waiting (first: {first and first.name}, {first and first.tokens} "
            f"tokens), {self.scheduler.kv.free_blocks} free blocks"
        )


class Replica:
    """A rank, its step-time model and its clock.

    ``next_ps`` is the time of its next event, which ``advance`` processes; ``arrive`` brings
    a request in between, ``notify`` what its KV connector reports.
    """

    def __init__(self, rank: Rank, model: StepTimeModel) -> None:
        self.ranks = [rank]
        self.index = rank.index
        self.next_ps = NEVER
        self.ending = False  # the next event is a step's end, else a wake-up
        self._rank = rank
        self._model = model
        self._depth = rank.scheduler.config.max_concurrent_batches
        self._host_free_ps = 0
        self._device_free_ps = 0
        self._stages = rank.scheduler.config.stage_layers
        self._stage_free_ps = [0] * len(self._stages)
        self._begun = 0  # steps with work, ended or in flight
        self._dormant = False

    def arrive(self, request: Request, replica: int, at_ps: int) -> None:
        """A request was sent here."""
        rank = self._rank
        due = rank.receive(request, at_ps)
        if self._dormant or not (rank.flight or rank.scheduler.has_requests):
            self.next_ps = min(self.next_ps, max(due, self._host_free_ps))

    def notify(self, request: Request, replica: int, at_ps: int) -> None:
        """See ``Rank.notify``."""
        self._rank.notify(request)
        if self._dormant:
            self.next_ps = min(self.next_ps, max(at_ps, self._host_free_ps))

    def advance(self) -> None:
        """Process the event at ``next_ps``."""
        if self.ending:
            self._end_step(self.next_ps)
        else:
            self._wake(self.next_ps)

    def _wake(self, now: int) -> None:
        rank = self._rank
        rank.drain(now)
        self._dormant = False
        if rank.scheduler.has_requests:
            ran = self._schedule(now)
            if rank.is_stalled():
                rank.flight.clear()
                self._dormant = True
            elif len(rank.flight) < self._depth and (ran or rank.scheduler.has_requests):
                self.next_ps = self._host_free_ps  # room for one more batch: go on at once
                return
        if rank.flight:
            self.ending = True
            self.next_ps = max(rank.flight[0].end_ps, self._host_free_ps)
        else:
            self.next_ps = rank.inbox_ps(now)

    def _schedule(self, now: int) -> bool:
        batch = self._rank.plan(now)
        times = NOTHING
        if batch.tokens:
            shape = shape_of(batch)
            shape.engine_tokens = shape.most_tokens = shape.tokens
            shape.engine_prefill, shape.most_rows = shape.prefill_tokens, shape.rows
            shape.draw = draw_of(self.index, self._begun)
            self._begun += 1
            times = self._model.times(shape)
        if self._depth == 1:
            end = now + times.host + times.alone
        elif len(self._stages) == 1:
            self._host_free_ps = now + times.host
            end = max(self._host_free_ps, self._device_free_ps) + times.alone
            self._device_free_ps = end
        else:
            self._host_free_ps = now + times.host
            end = self._through_stages(times)
        self._rank.launch(batch, times, now, end, dummy=False)
        return batch.tokens > 0

    def _through_stages(self, times: StepTimes) -> int:
        """A batch passes the pipeline's stages; returns when it leaves the last."""
        at, last = self._host_free_ps, len(self._stages) - 1
        for k, layers in enumerate(self._stages):
            at += times.hop * (k > 0)
            at = max(at, self._stage_free_ps[k]) + times.forward * layers // sum(self._stages)
            at += times.head * (k == last)
            self._stage_free_ps[k] = at
        return at

    def _end_step(self, now: int) -> None:
        rank = self._rank
        self.ending = False
        self._host_free_ps = now + rank.end_oldest(now).times.gap
        if rank.flight or rank.scheduler.has_requests:
            self.next_ps = self._host_free_ps
        else:
            self.next_ps = rank.inbox_ps(self._host_free_ps)
