"""Data-parallel ranks of one MoE engine: schedulers of their own that step together.

The experts of a layer take tokens from every rank, so all ranks run every step: one that
has nothing to run runs a dummy batch of one token, and the step lasts as long as the
slowest. vLLM's rules (``v1/engine/core.py``, ``DPEngineCoreProc``, 0.32.0)::

    arrival at any rank -> wave: step 1, 2, 3, ...            all ranks, dummies included
    after step 1 and every dp_sync_interval-th step: does any rank have requests? else stop

With dual-batch overlap they run a step in two halves, so that one computes while the other
exchanges tokens, if each has enough of them.

The ranks' hosts meet in every step, when they tell each other how many tokens they run, so
one clock serves them all: the host and forward of a step are the largest of any rank.

This is the plain form, around the reference scheduler; ``engine/lockstep.py`` is its equal.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.clock import NEVER
from simulator.replica import Rank
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Batch
from simulator.scheduling.request import Request
from simulator.step_time.base import BatchShape, StepTimeModel, StepTimes, draw_of, shape_of


class LockStep:
    """The ranks of one engine; see ``Replica`` for ``next_ps``, ``ending`` and ``advance``."""

    def __init__(self, ranks: Sequence[Rank], model: StepTimeModel) -> None:
        config = ranks[0].scheduler.config
        self.ranks = list(ranks)
        self.index = ranks[0].index
        self.next_ps = NEVER
        self.ending = False
        self._model = model
        self._depth = config.max_concurrent_batches
        self._interval = config.dp_sync_interval
        self._stepping = False  # in a wave,
        self._wave = 0  # of which so many steps are over
        self._host_free_ps = 0
        self._device_free_ps = 0
        self._begun = 0

    def arrive(self, request: Request, replica: int, at_ps: int) -> None:
        """A request was sent to one of the ranks."""
        due = self.ranks[replica - self.index].receive(request, at_ps)
        if not self._stepping:
            self.next_ps = min(self.next_ps, max(due, self._host_free_ps))

    def notify(self, request: Request, replica: int, at_ps: int) -> None:
        """See ``Rank.notify``; a wave goes on while a rank waits for KV."""
        self.ranks[replica - self.index].notify(request)

    def advance(self) -> None:
        """Process the event at ``next_ps``."""
        if self.ending:
            self._end_step(self.next_ps)
        else:
            self._wake(self.next_ps)

    def _wake(self, now: int) -> None:
        self._stepping = True
        for rank in self.ranks:
            rank.drain(now)
        self._begin_step(now)
        flight = self.ranks[0].flight
        if len(flight) < self._depth:
            self._agree()
        else:
            self.ending = True
            self.next_ps = max(flight[0].end_ps, self._host_free_ps)

    def _begin_step(self, now: int) -> None:
        batches = [
            rank.plan(now) if rank.scheduler.has_requests else Batch() for rank in self.ranks
        ]
        shapes = [shape_of(batch) if batch.tokens else dummy_shape() for batch in batches]
        tokens = [shape.tokens for shape in shapes]
        halved = runs_halves(self.ranks[0].scheduler.config, shapes)
        found = []
        for shape in shapes:
            shape.engine_tokens, shape.most_tokens = sum(tokens), max(tokens)
            shape.engine_prefill = sum(s.prefill_tokens for s in shapes)
            shape.most_rows = max(s.rows for s in shapes)
            shape.draw = draw_of(self.index, self._begun)
            shape.halved = halved
            found.append(self._model.times(shape))
        self._begun += 1
        times = StepTimes(
            max(t.alone for t in found), max(t.host for t in found), max(t.gap for t in found)
        )
        end = now + times.host + times.forward
        if self._depth > 1:
            self._host_free_ps = now + times.host
            end = max(self._host_free_ps, self._device_free_ps) + times.forward
            self._device_free_ps = end
        for rank, batch in zip(self.ranks, batches, strict=True):
            rank.launch(batch, times, now, end, dummy=not batch.tokens)

    def _end_step(self, now: int) -> None:
        self.ending = False
        gaps = [rank.end_oldest(now).times.gap for rank in self.ranks]
        self._host_free_ps = now + gaps[0]  # the same for all
        self._agree()

    def _agree(self) -> None:
        """A step of the wave is over for the schedulers: go on, or stop together."""
        self._wave += 1
        self.next_ps = self._host_free_ps
        if self._wave != 1 and self._wave % self._interval:
            return
        if any(rank.scheduler.has_requests for rank in self.ranks):
            return
        while self.ranks[0].flight:  # dummy batches still on the device
            for rank in self.ranks:
                rank.end_oldest(rank.flight[0].end_ps)
        self._stepping, self._wave = False, 0
        self.next_ps = min(rank.inbox_ps(self._host_free_ps) for rank in self.ranks)


def runs_halves(config: SchedulerConfig, shapes: Sequence[BatchShape]) -> bool:
    """Whether all ranks have enough tokens for dual-batch overlap, and for a second half.

    ``v1/worker/dp_utils.py`` and ``ubatch_utils.check_ubatch_thresholds``.
    """
    decode, prefill = config.dbo_decode_token_threshold, config.dbo_prefill_token_threshold
    tokens = [shape.tokens for shape in shapes]
    return (
        decode > 0
        and all(s.tokens >= (prefill if s.prefill_rows else decode) for s in shapes)
        and max(tokens) // 2 < min(tokens)
    )


def dummy_shape() -> BatchShape:
    """A batch of one decode without context, of which nothing is sampled."""
    return BatchShape(tokens=1, rows=1, decodes=1)
