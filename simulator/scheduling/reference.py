"""vLLM V1's scheduler, plainly: the oracle that the compiled engine must equal bit for bit.

There is no prefill or decode phase: every step gives each request tokens until its
computed tokens catch up with its known tokens. Running requests come first in list order,
then waiting ones until the budget, the seats or the KV blocks run out. Mirrors
``v1/core/sched/scheduler.py`` and ``async_scheduler.py`` of vLLM 0.32.0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from simulator.kv.base import KV
from simulator.kv.manager import KVManager
from simulator.scheduling import create_policy
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.request import Remote, Request, Status


@dataclass(slots=True)
class Row:
    """One request in a batch: ``[computed, computed + tokens)`` are run in this step."""

    request: Request
    computed: int
    tokens: int
    emits: bool = False  # the step samples an output token for it
    stale: bool = False


@dataclass(slots=True)
class Batch:
    """What one step runs, who lost its blocks to it, and whose KV it begins to load."""

    rows: list[Row] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)
    loads: list[Request] = field(default_factory=list)
    tokens: int = 0

    def add(self, request: Request, tokens: int) -> None:
        """Append a row for ``request`` at its current progress."""
        self.rows.append(Row(request, request.computed, tokens))
        self.tokens += tokens


class Scheduler:
    """One engine's scheduler; drive it with ``add``, ``schedule`` and ``update``.

    ``schedule`` returns the batch of the next step, ``update`` applies the end of the
    oldest step in flight and returns the requests that got their first or last token.
    With a KV connector, ``loaded`` and ``release`` say what it reports.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.policy = create_policy(config.scheduling_policy)
        self.waiting = self.policy.queue()
        self.holding = self.policy.queue()  # they wait too, and hold blocks: KV comes or came
        self.kept = 0  # requests that finished and hold their blocks for another engine
        self.running: list[Request] = []
        self.kv: KV = self._make_kv()
        self.capped_chunks = 0
        self._scheduled = self._ended = 0  # steps with tokens
        self._deferred: deque[tuple[int, Request]] = deque()  # (step, whose blocks it frees)

    def _make_kv(self) -> KV:
        config = self.config
        return KVManager(
            config.num_gpu_blocks,
            config.block_size,
            config.windows,
            caching=config.enable_prefix_caching,
            in_flight_tokens=config.max_concurrent_batches * config.max_num_batched_tokens,
            max_model_len=config.max_model_len,
            watermark=config.watermark,
        )

    def add(self, request: Request) -> None:
        """A request enters the waiting queue."""
        self.waiting.push(request)

    @property
    def has_requests(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.running) or self.waits > 0

    @property
    def waits(self) -> int:
        """Requests that wait, those for their KV among them."""
        return len(self.waiting) + len(self.holding)

    def schedule(self) -> Batch:
        """Decide the next step's batch and advance the progress of its requests."""
        batch = Batch()
        threshold = self._long_prefill_threshold()
        self._schedule_running(batch, threshold)
        if not batch.preempted:
            self._schedule_waiting(batch, threshold)
        for row in batch.rows:
            self._advance(row)
        self._scheduled += batch.tokens > 0
        return batch

    def update(self, batch: Batch) -> list[Request]:
        """The batch's step ended: hand out its tokens, free what finished.

        Returns the requests that got their first or last token.
        """
        events = []
        self._ended += batch.tokens > 0
        while self._deferred and self._deferred[0][0] <= self._ended:
            self.kv.free(self._deferred.popleft()[1])
        for row in batch.rows:
            request = row.request
            request.in_flight -= row.tokens
            row.stale = request.stale > 0
            if row.stale:
                request.stale -= row.tokens
            if request.status >= Status.FINISHED or not row.emits:
                continue
            if row.stale and self.config.drops_stale_tokens:
                continue
            self._append_token(request, stale=row.stale)
            if request.output >= request.max_tokens:
                self._finish(request)
                events.append(request)
            elif request.output == 1:
                events.append(request)
        self.running = [r for r in self.running if r.status == Status.RUNNING]
        return events

    def abort(self, request: Request) -> None:
        """The client went away."""
        if request.status == Status.RUNNING:
            self.running.remove(request)
        elif request.remote in (Remote.LOADING, Remote.LOADED):
            self.holding.remove(request)
        else:
            self.waiting.remove(request)
        request.status = Status.ABORTED
        if request.remote == Remote.LOADING:
            return  # into its blocks: they are free when the KV has come
        if self.config.defers_frees and request.in_flight:
            self._deferred.append((self._scheduled, request))
        else:
            self.kv.free(request)

    def loaded(self, request: Request) -> None:
        """The KV of a request has come (vLLM's ``finished_recving``)."""
        request.remote = Remote.LOADED
        if request.status == Status.ABORTED:
            self.kv.free(request)

    def release(self, request: Request) -> None:
        """The blocks kept of a finished request are needed no longer (``finished_sending``)."""
        request.remote = Remote.NONE
        self.kept -= 1
        self.kv.free(request)

    def check(self, requests: Iterable[Request]) -> None:
        """Raise InvariantError unless the KV blocks held by ``requests`` add up."""
        self.kv.check(requests)

    def _long_prefill_threshold(self) -> int:
        config = self.config
        threshold = config.long_prefill_token_threshold
        present = len(self.running) + self.waits
        if present <= 1:  # alone there is nobody to starve
            return 0
        if threshold > 0 and config.long_prefill_token_threshold_adaptive:
            threshold = max(threshold, config.max_num_batched_tokens // present)
        return threshold

    def _cap(self, tokens: int, threshold: int) -> int:
        if 0 < threshold < tokens:
            self.capped_chunks += 1
            return threshold
        return tokens

    def _schedule_running(self, batch: Batch, threshold: int) -> None:
        config, running = self.config, self.running
        index = 0
        while index < len(running) and batch.tokens < config.max_num_batched_tokens:
            request = running[index]
            budget = config.max_num_batched_tokens - batch.tokens
            ends = request.prompt + request.max_tokens
            if request.placeholders and request.computed + 2 - request.placeholders >= ends:
                index += 1  # the step in flight brings its last token
                continue
            tokens = request.tokens + request.placeholders - request.computed
            tokens = min(self._cap(tokens, threshold), budget)
            tokens = min(tokens, config.max_model_len - request.computed - 1)
            if tokens <= 0:
                index += 1
                continue
            while not self.kv.extend(request, tokens):
                victim_index = self.policy.victim(running)
                if config.defers_frees and running[victim_index].in_flight:
                    return  # its blocks would not be free now
                victim = running.pop(victim_index)
                index -= victim_index < index
                self._withdraw(batch, victim)
                self._preempt(victim)
                batch.preempted.append(victim)
                if victim is request:
                    return
            batch.add(request, tokens)
            index += 1

    def _withdraw(self, batch: Batch, victim: Request) -> None:
        for i, row in enumerate(batch.rows):
            if row.request is victim:
                del batch.rows[i]
                batch.tokens -= row.tokens
                return

    def _preempt(self, request: Request) -> None:
        self.kv.free(request)
        request.status = Status.PREEMPTED
        request.computed = 0
        request.placeholders = 0
        request.prefilling = False
        request.stale = request.in_flight
        request.preemptions += 1
        self.waiting.push_front(request)

    def _schedule_waiting(self, batch: Batch, threshold: int) -> None:
        config = self.config
        skipped: list[Request] = []
        loading: list[Request] = []
        while (
            batch.tokens < config.max_num_batched_tokens
            and self.waits > 0
            and len(self.running) < config.max_num_seqs
        ):
            queue = self.holding if len(self.holding) else self.waiting
            request = queue.peek()
            if request.remote == Remote.LOADING:
                loading.append(queue.pop())
            elif request.stale and not config.drops_stale_tokens:
                # Tokens sampled before its preemption are still on their way.
                skipped.append(queue.pop())
            elif request.remote == Remote.TO_LOAD:
                if not self._begin_load(request):
                    break
                loading.append(queue.pop())
                batch.loads.append(request)
            elif request.remote == Remote.LOADED:
                if not self._resume(batch, request):
                    break
            elif not self._admit(batch, request, threshold):
                break
        for request in skipped[::-1]:
            self.waiting.push_front(request)
        for request in loading[::-1]:
            self.holding.push_front(request)

    def _begin_load(self, request: Request) -> bool:
        """Reserve blocks for a prompt whose KV another engine has: all at once, unlike chunks.

        They must leave what the prefills under way still need, for a load that waits for
        them could not be preempted.
        """
        hit, hit_tokens, request.boundary = self.kv.longest_hit(request)
        if not self.kv.admit(
            request,
            request.tokens - hit_tokens,
            hit,
            hit_tokens,
            reserve_full=self.config.scheduler_reserve_full_isl,
            others_running=bool(self.running),
            spare=sum(self.kv.missing(r) for r in self.running if r.prefilling),
            delayed=True,
        ):
            return False
        request.computed = request.tokens
        request.remote = Remote.LOADING
        if request.cached_tokens < 0:
            request.cached_tokens = hit_tokens
        return True

    def _resume(self, batch: Batch, request: Request) -> bool:
        """Run a request whose KV has come; its last token is computed again, for its logits."""
        if request.computed == request.tokens:
            self.kv.cache(request, request.computed)
            request.computed -= 1
        if not self.kv.resume(request, 1, others_running=bool(self.running)):
            return False
        self.holding.pop()
        request.remote = Remote.NONE
        self.running.append(request)
        request.status = Status.RUNNING
        batch.add(request, 1)
        return True

    def _admit(self, batch: Batch, request: Request, threshold: int) -> bool:
        config = self.config
        budget = config.max_num_batched_tokens - batch.tokens
        hit, hit_tokens, request.boundary = self.kv.longest_hit(request)
        wanted = self._cap(request.tokens - hit_tokens, threshold)
        if wanted > budget and not config.enable_chunked_prefill:
            return False
        if not self.kv.admit(
            request,
            tokens := min(wanted, budget),
            hit,
            hit_tokens,
            reserve_full=config.scheduler_reserve_full_isl,
            others_running=bool(self.running),
        ):
            return False
        self.waiting.pop()
        self.running.append(request)
        request.status = Status.RUNNING
        request.computed = hit_tokens
        if request.cached_tokens < 0:
            request.cached_tokens = hit_tokens
        request.prefilling = request.computed + tokens < request.tokens
        batch.add(request, tokens)
        return True

    def _advance(self, row: Row) -> None:
        request = row.request
        request.computed += row.tokens
        request.in_flight += row.tokens
        row.emits = request.computed >= request.tokens + request.placeholders
        request.prefilling = not row.emits
        if row.emits and self.config.async_scheduling:
            request.placeholders += 1

    def _append_token(self, request: Request, *, stale: bool) -> None:
        request.output += 1
        if not self.config.async_scheduling:
            return
        if not stale:
            request.placeholders -= 1
        if request.status == Status.RUNNING:
            self.kv.cache(request, request.computed - request.placeholders)

    def _finish(self, request: Request) -> None:
        if request.status == Status.PREEMPTED:
            self.waiting.remove(request)
        request.status = Status.FINISHED
        if request.remote == Remote.TO_KEEP:
            request.remote = Remote.KEPT
            self.kept += 1
        else:
            self.kv.free(request)
