"""The scheduler without a loop over decoding rows: equal to ``reference`` bit for bit.

A decoding request gets one token every step, so nothing about it needs touching until it
ends: its context is ``base + clock``, it needs a block when that is a multiple of the block
size (counted by phase), and it ends at a known step (kept in buckets). A step costs the
same for one decode as for a thousand.

A step that may preempt, or that follows a rule the fast path leaves out (capped long
prefills, sliding windows, tokens on their way to preempted requests), is *plain*: the
implicit state is written out, ``reference`` does the step, and the state is read back when
the fast path applies again.

Running requests stand in this order, in fast steps::

    [ decodes and, asynchronously, those whose last token is in flight | at most one prefill ]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from simulator.kv.base import KV
from simulator.kv.counted import CountedKV
from simulator.kv.groups import ceil_div
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Batch, Row, Scheduler
from simulator.scheduling.request import Request, Status
from traces.errors import InvariantError


class FastScheduler(Scheduler):
    """Drop-in for ``Scheduler``; ``rows`` of a fast batch name only what is not a decode.

    With ``explicit`` every batch lists all its rows, for recording.
    """

    kv: CountedKV

    def __init__(self, config: SchedulerConfig, *, explicit: bool = False) -> None:
        super().__init__(config)
        self.explicit = explicit
        self.fast_steps = 0
        self.plain_steps = 0
        self._async = config.async_scheduling
        self._block_size = config.block_size
        self._in_flight: deque[Batch] = deque()
        self._is_plain = True
        self._clock = 0
        self._seats = 0
        self._blocked: tuple[Request | None, int] = (None, -1)
        self._reset()

    def _make_kv(self) -> KV:
        config = self.config
        if config.windows != (None,):
            return super()._make_kv()
        return CountedKV(
            config.num_gpu_blocks,
            config.block_size,
            caching=config.enable_prefix_caching,
            max_model_len=config.max_model_len,
            watermark=config.watermark,
        )

    def _reset(self) -> None:
        self._decodes = 0
        self._context = 0  # sum of the decodes' computed tokens
        self._phase = [0] * self._block_size  # decodes by base modulo the block size
        self._last_step: dict[int, list[Request]] = {}  # clock -> decodes that end then
        self._prefill: Request | None = None
        self._sharers: list[Request] = []  # decodes that still fill blocks others may share

    # -- the two ways to make a step ------------------------------------------------------

    def schedule(self) -> Batch:
        if self._is_plain and self._fast_applies():
            self._read_back()
        batch = None if self._is_plain else self._fast_step()
        if batch is None:
            self._write_out()
            batch = super().schedule()
            self._is_plain = True
            self.plain_steps += bool(batch.rows)
        else:
            self.fast_steps += 1
            if self.explicit:
                self._list_decodes(batch)
        self._in_flight.append(batch)
        return batch

    def update(self, batch: Batch) -> list[Request]:
        self._in_flight.popleft()
        if not batch.implicit:
            return super().update(batch)
        events = []
        for request in batch.first:
            request.output += 1
            if request.output == 1:
                events.append(request)
        if batch.last:
            for request in batch.last:
                request.output = request.max_tokens
                request.computed = request.prompt + request.max_tokens - 1
                request.held = ceil_div(request.computed, self._block_size)
                request.in_flight = request.placeholders = 0
                request.status = Status.FINISHED
                self.kv.cache(request, request.computed)
                self.kv.free(request)
            if len(batch.last) == 1:
                self.running.remove(batch.last[0])
            else:
                self.running = [r for r in self.running if r.status == Status.RUNNING]
            events += batch.last
        return events

    def abort(self, request: Request) -> None:
        self._write_out()
        self._is_plain = True
        super().abort(request)

    def check(self, requests: Iterable[Request]) -> None:
        if not self._is_plain:
            self._write_fields()
        super().check(requests)

    # -- a fast step ------------------------------------------------------------------------

    def _fast_step(self) -> Batch | None:
        """The next batch, or None (with nothing changed) if this step must be plain."""
        config, kv, clock = self.config, self.kv, self._clock
        decodes = self._decodes
        blocks = self._phase[-clock % self._block_size]
        budget = config.max_num_batched_tokens - decodes
        prefill = self._prefill
        if blocks > kv.free_blocks or budget < 0:
            return None
        if config.long_prefill_token_threshold and (prefill is not None or self.waiting):
            return None
        chunk = 0
        if prefill is not None and budget > 0:
            chunk = min(prefill.tokens - prefill.computed, budget)
            missing = ceil_div(prefill.computed + chunk, self._block_size) - prefill.held
            if blocks + missing > kv.free_blocks:
                return None
        batch = Batch(tokens=decodes, implicit=True, decodes=decodes, context=self._context)
        if blocks:
            kv.take(blocks)
        if self._sharers:
            self._fill_shared()
        if chunk:
            assert prefill is not None
            kv.extend(prefill, chunk)
            batch.add(prefill, chunk)
        if batch.tokens < config.max_num_batched_tokens and self.waiting:
            self._admit_waiting(batch)
        self._clock = batch.clock = clock + 1
        self._context += decodes
        ending = self._last_step.pop(clock, None)
        if ending is not None:
            self._retire(ending)
            batch.last = ending
        for row in batch.rows:
            self._advance_row(batch, row)
        if len(batch.last) > 1:
            batch.last.sort(key=_seat)
        return batch

    def _admit_waiting(self, batch: Batch) -> None:
        config, kv, waiting, running = self.config, self.kv, self.waiting, self.running
        while (
            batch.tokens < config.max_num_batched_tokens
            and waiting
            and len(running) < config.max_num_seqs
        ):
            request = waiting.peek()
            if self._blocked == (request, kv.version) and running and kv.free_blocks < kv.wanted:
                return  # refused before, and nothing has changed for the better
            kv.wanted = 0
            if not self._admit(batch, request, 0):
                # What it wants depends on the chunk, and so on the budget, unless reserved.
                lasting = kv.wanted and config.scheduler_reserve_full_isl
                self._blocked = (request, kv.version if lasting else -1)
                return
            self._seats += 1
            request.seat = self._seats

    def _advance_row(self, batch: Batch, row: Row) -> None:
        request = row.request
        request.computed += row.tokens
        row.emits = request.computed >= request.tokens
        request.is_prefill = not row.emits
        if not row.emits:
            self._prefill = request
            return
        if self._prefill is request:
            self._prefill = None
        if request.output + 1 >= request.max_tokens:
            request.base, request.joined = request.computed - self._clock, self._clock
            batch.last = [*batch.last, request]
            return
        batch.first.append(request)
        self._join(request, request.max_tokens - request.output - 1, self._clock)

    def _join(self, request: Request, steps: int, joined: int) -> None:
        """A request becomes a decode of ``steps`` more steps, from the next step on."""
        clock = self._clock
        request.joined = joined
        request.base = request.computed - clock
        self._decodes += 1
        self._context += request.computed
        self._phase[request.base % self._block_size] += 1
        self._last_step.setdefault(clock + steps - 1, []).append(request)
        if request.shared > request.cached_blocks[0]:
            self._sharers.append(request)

    def _retire(self, ending: list[Request]) -> None:
        self._decodes -= len(ending)
        for request in ending:
            self._context -= request.base + self._clock
            self._phase[request.base % self._block_size] -= 1
        if self._sharers:
            done = {r.index for r in ending}
            self._sharers = [r for r in self._sharers if r.index not in done]

    def _fill_shared(self) -> None:
        known = 0 if self._async else 1  # asynchronously the newest token is not known yet
        for request in self._sharers:
            self.kv.cache(request, request.base + self._clock + known)
        self._sharers = [r for r in self._sharers if r.shared > r.cached_blocks[0]]

    # -- between fast and plain -------------------------------------------------------------

    def _fast_applies(self) -> bool:
        if not isinstance(self.kv, CountedKV):
            return False
        for request in self.running:
            if request.is_prefill:
                if request is not self.running[-1]:
                    return False
            elif self._async and request.placeholders != 1:
                return False
        rows = [row for batch in self._in_flight for row in batch.rows]
        return all(r.request.status == Status.RUNNING and not r.request.stale for r in rows)

    def _read_back(self) -> None:
        """Make decodes implicit; the state was plain."""
        self._reset()
        self._is_plain = False
        clock, size = self._clock, self._block_size
        for batch in self._in_flight:  # at most one, and what it will bring is known
            batch.implicit, batch.clock = True, clock
            emitting = [row.request for row in batch.rows if row.emits]
            batch.last = [r for r in emitting if r.output + 1 >= r.max_tokens]
            batch.first = [r for r in emitting if r.output == 0 and r.max_tokens > 1]
        for request in self.running:
            self._seats += 1
            request.seat = self._seats
            if request.is_prefill:
                self._prefill = request
                continue
            # Whether its newest token is in the prefix cache yet tells when it joined.
            joined = clock - (request.cached_blocks[0] < request.computed // size)
            left = request.max_tokens - request.output - request.placeholders
            if left > 0:
                self._join(request, left, joined)
            else:
                request.base, request.joined = request.computed - clock, joined

    def _write_out(self) -> None:
        """Make everything explicit, requests and batches in flight alike."""
        if self._is_plain:
            return
        self._write_fields()
        for batch in self._in_flight:
            batch.implicit = False
        self._reset()

    def _write_fields(self) -> None:
        """Write the fields of implicit requests as ``reference`` would have them."""
        pending: dict[int, int] = {}
        tokens: dict[int, int] = {}
        for batch in self._in_flight:
            self._list_decodes(batch)
            for row in batch.rows:
                index = row.request.index
                pending[index] = pending.get(index, 0) + row.emits
                tokens[index] = tokens.get(index, 0) + row.tokens
        for request in self.running:
            request.in_flight = tokens.get(request.index, 0)
            if request is self._prefill:
                continue
            emitting = pending.get(request.index, 0)
            final = request.prompt + request.max_tokens - 1
            request.computed = min(request.base + self._clock, final)
            request.output = request.computed + 1 - request.prompt - emitting
            request.placeholders = emitting if self._async else 0
            request.held = ceil_div(request.computed, self._block_size)
            if self.kv.caching:
                unknown = self._async and request.joined != self._clock
                request.cached_blocks[0] = (request.computed - unknown) // self._block_size

    def _list_decodes(self, batch: Batch) -> None:
        """Name the decodes of a fast batch too, in running order."""
        if not batch.decodes:
            return
        named = {row.request.index for row in batch.rows}
        decodes = [
            Row(r, r.base + batch.clock - 1, 1, emits=True)
            for r in self.running
            if r.index not in named
            and not r.is_prefill
            and r.joined < batch.clock
            and r.base + batch.clock <= r.prompt + r.max_tokens - 1
        ]
        if len(decodes) != batch.decodes:
            raise InvariantError(f"{len(decodes)} decodes found, {batch.decodes} counted")
        batch.rows = decodes + batch.rows
        batch.decodes = 0


def _seat(request: Request) -> int:
    return request.seat
