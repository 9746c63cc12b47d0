"""Quiet steps: nothing but decodes, so that a thousand cost what one does.

In a quiet stretch every running request gets one token a step and nothing else happens: its
context grows by one, it needs a block when that is a multiple of the block size (counted
by phase), and the stretch ends before the first of them does. Until then only counters
move; ``settle`` writes out what they stand for::

    computed at ``begin``    + scheduled           the steps of the stretch that were scheduled
    output at ``begin``      + ended               and those that ended
"""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.kv import take
from simulator.engine.layout import (
    Replica,
    Step,
    World,
    model_of,
    phase_of,
    request_of,
    row_of,
    seat_of,
    shape_of,
    slot_of,
)  # fmt: skip

FAR = 1 << 40


@compiled
def begin(w: World, s: Replica) -> bool:
    """Begin a stretch if the next step is one of nothing but decodes."""
    rows = s.running
    full = rows == w.max_seqs or rows == w.max_batched_tokens
    waits = s.waiting > s.holding and (not s.blocked or w.long_prefill)
    admits = not full and (waits or s.loaded)
    if rows == 0 or rows > w.max_batched_tokens or admits or s.flight != w.depth - 1:
        return False
    if s.flight:  # asynchronously, the step in flight becomes the first of the stretch
        oldest = slot_of(s, s.first_slot)
        if oldest.rows != rows or oldest.tokens != rows:
            return False
    for residue in range(w.block_size):
        phase_of(s, residue).value = 0
    s.context = s.context_sq = s.context_max = 0
    s.quiet_left = FAR
    for at in range(rows):
        r = request_of(w, seat_of(s, at).value)
        c = r.computed
        if (
            r.prompt + r.output + r.placeholders - c != 1
            or r.output == 0
            or r.stale
            or r.in_flight != s.flight
            or r.placeholders != s.flight
        ):
            return False
        left = r.max_tokens - r.output - w.depth  # the last step but those in flight
        if w.caching and r.shared > r.cached:  # until it fills a block others may hit
            left = min(left, (r.cached + 1) * w.block_size - c - 1)
        s.quiet_left = min(s.quiet_left, left)
        if left <= 0:
            return False
        phase_of(s, c % w.block_size).value += 1
        s.context += c
        s.context_sq += c * c
        s.context_max = max(s.context_max, c)
    s.quiet = 1
    s.scheduled = s.ended = 0
    if s.flight:
        slot_of(s, s.first_slot).quiet = 1
    return True


@compiled
def plan_quiet(w: World, s: Replica, step: Step) -> bool:
    """Plan a step of the stretch; False, with nothing changed, if its blocks run out."""
    blocks = phase_of(s, (-s.scheduled) % w.block_size).value
    if blocks > s.free_blocks:
        return False
    if blocks:
        take(w, s, blocks)
    rows = s.running
    step.quiet = 1
    step.rows = step.tokens = rows
    step.preempted = step.prefill_tokens = 0
    shape = shape_of(model_of(w, 0), 0)
    shape.tokens = shape.rows = shape.sampled = shape.decodes = rows
    shape.decode_context = s.context
    shape.decode_context_sq = s.context_sq
    shape.decode_context_max = s.context_max
    shape.prefill_rows = shape.prefill_tokens = shape.prefill_tokens_sq = 0
    shape.prefill_context = shape.prefill_context_sq = shape.prefill_context_max = 0
    shape.prefill_pairs = 0
    s.context_sq += 2 * s.context + rows
    s.context += rows
    s.context_max += 1
    s.scheduled += 1
    s.quiet_left -= 1
    s.quiet_steps += 1
    return True


@compiled
def settle(w: World, s: Replica) -> None:
    """End the stretch: bring its requests, and the steps in flight, up to date."""
    pending = s.scheduled - s.ended
    for at in range(s.running):
        r = request_of(w, seat_of(s, at).value)
        r.computed += s.scheduled
        r.output += s.ended
        r.in_flight += pending
        if w.asynchronous:
            r.placeholders += pending
        r.held = -(-r.computed // w.block_size)
        # Asynchronously the newest token is not known yet, nor is the block it fills.
        cached = (r.computed - (r.placeholders > 0)) // w.block_size
        if w.caching and cached > r.cached:
            r.cached = cached
    s.quiet = s.scheduled = s.ended = 0
    for k in range(s.flight):
        step = slot_of(s, (s.first_slot + k) % w.slots)
        step.quiet = 0
        list_rows(w, s, step, k - s.flight)


@compiled
def list_rows(w: World, s: Replica, step: Step, ago: int) -> None:
    """Write the rows of a quiet step, whose requests are now ``-ago`` tokens further."""
    for at in range(s.running):
        row = row_of(step, at)
        row.request = seat_of(s, at).value
        row.computed = request_of(w, row.request).computed + ago
        row.tokens = row.emits = 1
        row.stale = 0
