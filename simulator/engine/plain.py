"""A step row by row: the rules of ``scheduling/reference.py``, function by function."""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.kv import admit, cache, extend, free, longest_hit, missing
from simulator.engine.layout import (
    NONE,
    Replica,
    Shape,
    Step,
    World,
    begun_of,
    finished_of,
    model_of,
    preempted_of,
    request_of,
    row_of,
    seat_of,
    shape_of,
)  # fmt: skip
from simulator.engine.queue import dequeue, enqueue, hold
from simulator.engine.records import copy
from simulator.scheduling.request import Remote, Status

RUNNING, PREEMPTED, FINISHED = int(Status.RUNNING), int(Status.PREEMPTED), int(Status.FINISHED)
LOCAL, TO_LOAD, LOADING, LOADED, TO_KEEP, KEPT = (int(remote) for remote in Remote)


@compiled
def plan(w: World, s: Replica, step: Step) -> None:
    """Decide the step's batch and advance the progress of its requests."""
    step.quiet = step.rows = step.tokens = step.preempted = 0
    present = s.running + s.waiting
    threshold = 0  # alone there is nobody to starve
    if present > 1 and w.long_prefill > 0:
        threshold = w.long_prefill
        if w.adaptive_long_prefill and w.max_batched_tokens // present > threshold:
            threshold = w.max_batched_tokens // present
    _schedule_running(w, s, step, threshold)
    s.blocked = 0
    if not step.preempted:
        _schedule_waiting(w, s, step, threshold)
    _advance(w, step)


@compiled
def _schedule_running(w: World, s: Replica, step: Step, threshold: int) -> None:
    index = 0
    while index < s.running and step.tokens < w.max_batched_tokens:
        i = seat_of(s, index).value
        r = request_of(w, i)
        index += 1
        if r.placeholders and r.computed + 2 - r.placeholders >= r.prompt + r.max_tokens:
            continue  # the step in flight brings its last token
        tokens = r.prompt + r.output + r.placeholders - r.computed
        if 0 < threshold < tokens:
            s.capped_chunks += 1
            tokens = threshold
        tokens = min(tokens, w.max_batched_tokens - step.tokens, w.max_model_len - r.computed - 1)
        if tokens <= 0:
            continue
        while not extend(w, s, r, tokens):
            at = _victim(w, s)
            if w.defers_frees and request_of(w, seat_of(s, at).value).in_flight:
                return  # its blocks would not be free now
            index -= at < index
            victim = seat_of(s, at).value
            _withdraw(step, victim)
            _preempt(w, s, step, at)
            if victim == i:
                return
        _add_row(w, step, i, tokens)


@compiled
def _add_row(w: World, step: Step, i: int, tokens: int) -> None:
    row = row_of(step, step.rows)
    row.request = i
    row.computed = request_of(w, i).computed
    row.tokens = tokens
    row.stale = 0
    step.rows += 1
    step.tokens += tokens


@compiled
def _victim(w: World, s: Replica) -> int:
    """Seat of the request to preempt: the last, or by priority the first of the least."""
    worst = s.running - 1
    if w.by_priority:
        for at in range(s.running - 2, -1, -1):
            a, b = request_of(w, seat_of(s, at).value), request_of(w, seat_of(s, worst).value)
            if a.priority > b.priority or (
                a.priority == b.priority and a.arrival_ps >= b.arrival_ps
            ):
                worst = at
    return worst


@compiled
def _withdraw(step: Step, i: int) -> None:
    """Take a request that lost its blocks out of the batch again."""
    kept = 0
    for at in range(step.rows):
        row, to = row_of(step, at), row_of(step, kept)
        if row.request == i:
            step.tokens -= row.tokens
            continue
        copy(to, row)
        kept += 1
    step.rows = kept


@compiled
def _preempt(w: World, s: Replica, step: Step, at: int) -> None:
    i = seat_of(s, at).value
    s.running -= 1
    for k in range(at, s.running):
        seat_of(s, k).value = seat_of(s, k + 1).value
    free(w, s, i)
    r = request_of(w, i)
    r.status = PREEMPTED
    r.computed = r.placeholders = r.prefilling = 0
    r.stale = r.in_flight
    r.preemptions += 1
    enqueue(w, s, i, True)
    preempted_of(step, step.preempted).value = i
    step.preempted += 1


@compiled
def _schedule_waiting(w: World, s: Replica, step: Step, threshold: int) -> None:
    skipped = 0  # they stand in the list of the preempted, of whom there are none
    i = s.waiting_first
    if s.holding and not s.loaded:
        i = request_of(w, s.holding_last).next
    while i != NONE and step.tokens < w.max_batched_tokens and s.running < w.max_seqs:
        r = request_of(w, i)
        after = r.next
        if r.remote == LOADING:
            pass
        elif r.stale and not w.drops_stale:  # tokens sampled before its preemption are coming
            dequeue(w, s, i)
            preempted_of(step, skipped).value = i
            skipped += 1
        elif r.remote == TO_LOAD:
            if not _begin_load(w, s, i):
                break
        elif r.remote == LOADED:
            if not _resume(w, s, step, i):
                break
        elif not _admit(w, s, step, i, threshold):
            s.blocked = s.blocked and not skipped
            break
        i = after
    for k in range(skipped - 1, -1, -1):
        enqueue(w, s, preempted_of(step, k).value, True)


@compiled
def _begin_load(w: World, s: Replica, i: int) -> bool:
    """Reserve blocks for a prompt whose KV another engine has."""
    r = request_of(w, i)
    hit = longest_hit(w, s, r)
    spare = 0
    for at in range(s.running):
        other = request_of(w, seat_of(s, at).value)
        if other.prefilling:
            spare += missing(w, other)
    if not admit(w, s, i, r.prompt + r.output - hit * w.block_size, hit, spare):
        s.blocked = spare == 0
        return False
    hold(w, s, i)
    r.computed = r.prompt + r.output
    r.remote = LOADING
    if r.cached_tokens < 0:
        r.cached_tokens = hit * w.block_size
    load = begun_of(w, w.begun)
    load.request = i
    load.replica = s.index
    load.blocks = r.held - r.cached
    w.begun += 1
    return True


@compiled
def _resume(w: World, s: Replica, step: Step, i: int) -> bool:
    """Run a request whose KV has come; its last token is computed again, for its logits."""
    r = request_of(w, i)
    if r.computed == r.prompt + r.output:
        cache(w, s, r, r.computed)
        r.computed -= 1
    wanted = missing(w, r)
    if s.running > 0:
        wanted += w.watermark_blocks
    if wanted > s.free_blocks or not extend(w, s, r, 1):
        return False
    s.loaded -= 1
    dequeue(w, s, i)
    r.remote = LOCAL
    seat_of(s, s.running).value = i
    s.running += 1
    r.status = RUNNING
    _add_row(w, step, i, 1)
    return True


@compiled
def _admit(w: World, s: Replica, step: Step, i: int, threshold: int) -> bool:
    r = request_of(w, i)
    budget = w.max_batched_tokens - step.tokens
    hit = longest_hit(w, s, r)
    tokens = r.prompt + r.output - hit * w.block_size
    if 0 < threshold < tokens:
        s.capped_chunks += 1
        tokens = threshold
    if tokens > budget:
        if not w.chunked_prefill:
            return False
        tokens = budget
    if not admit(w, s, i, tokens, hit, 0):
        # What it wants depends on the chunk, and so on the batch, unless all is reserved.
        s.blocked = w.reserve_full
        return False
    cache(w, s, r, hit * w.block_size + tokens)
    dequeue(w, s, i)
    seat_of(s, s.running).value = i
    s.running += 1
    r.status = RUNNING
    r.computed = hit * w.block_size
    if r.cached_tokens < 0:
        r.cached_tokens = r.computed
    r.prefilling = r.computed + tokens < r.prompt + r.output
    _add_row(w, step, i, tokens)
    return True


@compiled
def _advance(w: World, step: Step) -> None:
    """Count the rows' tokens as computed, and measure the batch."""
    shape = shape_of(model_of(w, 0), 0)
    _clear(shape)
    step.prefill_tokens = 0
    for at in range(step.rows):
        row = row_of(step, at)
        r = request_of(w, row.request)
        q, c = row.tokens, row.computed
        if c < r.prompt:
            step.prefill_tokens += q
        r.computed += q
        r.in_flight += q
        row.emits = r.computed >= r.prompt + r.output + r.placeholders
        r.prefilling = not row.emits
        if row.emits and w.asynchronous:
            r.placeholders += 1
        shape.sampled += row.emits
        if q == 1:
            shape.decodes += 1
            shape.decode_context += c
            shape.decode_context_sq += c * c
            shape.decode_context_max = max(shape.decode_context_max, c)
        else:
            shape.prefill_tokens += q
            shape.prefill_tokens_sq += q * q
            shape.prefill_context += c
            shape.prefill_context_sq += c * c
            shape.prefill_context_max = max(shape.prefill_context_max, c)
            shape.prefill_pairs += q * c + q * (q + 1) // 2
    shape.tokens = step.tokens
    shape.rows = step.rows
    shape.prefill_rows = step.rows - shape.decodes


@compiled
def _clear(shape: Shape) -> None:
    shape.sampled = shape.decodes = shape.prefill_rows = 0
    shape.decode_context = shape.decode_context_sq = shape.decode_context_max = 0
    shape.prefill_tokens = shape.prefill_tokens_sq = shape.prefill_pairs = 0
    shape.prefill_context = shape.prefill_context_sq = shape.prefill_context_max = 0


@compiled
def hand_out(w: World, s: Replica, step: Step, now_ps: int) -> None:
    """The step ended: hand out its tokens, free what finished."""
    finished = w.finished
    for at in range(step.rows):
        row = row_of(step, at)
        r = request_of(w, row.request)
        r.in_flight -= row.tokens
        row.stale = r.stale > 0
        if row.stale:
            r.stale -= row.tokens
        if r.status >= FINISHED or not row.emits or (row.stale and w.drops_stale):
            continue
        r.output += 1
        if w.asynchronous:
            r.placeholders -= not row.stale
            if r.status == RUNNING:
                cache(w, s, r, r.computed - r.placeholders)
        if r.first_token_ps < 0:
            r.first_token_ps = now_ps
        if r.output >= r.max_tokens:
            _finish(w, s, row.request, now_ps)
    if w.finished > finished:
        _leave(w, s)


@compiled
def _finish(w: World, s: Replica, i: int, now_ps: int) -> None:
    r = request_of(w, i)
    if r.status == PREEMPTED:
        dequeue(w, s, i)
    r.status = FINISHED
    r.finished_ps = now_ps
    if r.remote == TO_KEEP:
        r.remote = KEPT
        s.kept += 1
    else:
        free(w, s, i)
    s.unfinished -= 1
    s.blocked = 0
    finish = finished_of(w, w.finished)
    finish.request = i
    finish.replica = s.index
    finish.at_ps = now_ps
    w.finished += 1


@compiled
def _leave(w: World, s: Replica) -> None:
    """Close the ranks of the running requests."""
    kept = 0
    for at in range(s.running):
        i = seat_of(s, at).value
        if request_of(w, i).status == RUNNING:
            seat_of(s, kept).value = i
            kept += 1
    s.running = kept
