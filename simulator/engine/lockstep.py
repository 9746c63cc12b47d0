"""Ranks that step together: the rules of ``simulator/lockstep.py``, function by function.

The first rank keeps the clock of all; the others have no event of their own.
"""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.layout import (
    DRAWS_APART,
    Replica,
    Shape,
    Step,
    World,
    begun_of,
    model_of,
    own_shape_of,
    replica_of,
    slot_of,
)  # fmt: skip
from simulator.engine.times import predict
from simulator.engine.turn import drain, end_batch, inbox_ps, plan_batch


@compiled
def advance_together(w: World, first: Replica) -> None:
    """Process the event at ``next_ps``."""
    if first.ending:
        _end_step(w, first, first.next_ps)
    else:
        _wake(w, first, first.next_ps)


@compiled
def _wake(w: World, first: Replica, now: int) -> None:
    first.stepping = 1
    for k in range(w.ranks):
        drain(w, replica_of(w, first.index + k), now)
    _begin_step(w, first, now)
    if first.flight < w.depth:
        _agree(w, first)
    else:
        first.ending = 1
        first.next_ps = max(slot_of(first, first.first_slot).end_ps, first.host_free_ps)


@compiled
def _begin_step(w: World, first: Replica, now: int) -> None:
    """Every rank plans a step, or runs a dummy one; the slowest sets the time of all."""
    m, begun = model_of(w, 0), w.begun
    home = m.shape_at
    slot = (first.first_slot + first.flight) % w.slots
    total = prefill = most = most_rows = 0
    least = w.max_batched_tokens + 1
    halved = w.dbo_decode > 0
    for k in range(w.ranks):
        s = replica_of(w, first.index + k)
        m.shape_at = s.shape_at
        step, shape = slot_of(s, slot), own_shape_of(s, 0)
        if s.running or s.waiting:
            plan_batch(w, s, now)
            step.dummy = not step.tokens
        else:
            _stand_in(s, step)
        if step.dummy:
            _dummy(shape)
        total += shape.tokens
        prefill += shape.prefill_tokens
        most = max(most, shape.tokens)
        most_rows = max(most_rows, shape.rows)
        least = min(least, shape.tokens)
        enough = w.dbo_prefill if shape.prefill_rows else w.dbo_decode
        halved = halved and shape.tokens >= enough
    halved = halved and most // 2 < least  # else the second half of a rank would be empty
    forward = host = gap = 0
    for k in range(w.ranks):
        s = replica_of(w, first.index + k)
        m.shape_at = s.shape_at
        shape = own_shape_of(s, 0)
        shape.engine_tokens = total
        shape.engine_prefill = prefill
        shape.most_tokens = most
        shape.most_rows = most_rows
        shape.halved = halved
        shape.draw = first.index * DRAWS_APART + first.begun
        predict(m)
        forward = max(forward, m.forward_ps + m.head_ps)
        host = max(host, m.host_ps)
        gap = max(gap, m.gap_ps)
    m.shape_at = home
    first.begun += 1
    end = now + host + forward
    if w.depth > 1:
        first.host_free_ps = now + host
        end = max(first.host_free_ps, first.device_free_ps) + forward
        first.device_free_ps = end
    for k in range(w.ranks):
        step = slot_of(replica_of(w, first.index + k), slot)
        step.start_ps = now
        step.end_ps = end
        step.forward_ps = forward
        step.gap_ps = gap
    for k in range(begun, w.begun):
        begun_of(w, k).at_ps = end if w.loads_late else now + host


@compiled
def _stand_in(s: Replica, step: Step) -> None:
    """A step of a rank that has no request."""
    step.dummy = 1
    step.quiet = step.rows = step.tokens = step.prefill_tokens = step.preempted = 0
    step.running = step.waiting = 0
    step.free_blocks = s.free_blocks
    s.flight += 1


@compiled
def _dummy(shape: Shape) -> None:
    """A batch of one decode without context, of which nothing is sampled."""
    shape.tokens = shape.rows = shape.decodes = 1
    shape.sampled = shape.prefill_rows = 0
    shape.decode_context = shape.decode_context_sq = shape.decode_context_max = 0
    shape.prefill_tokens = shape.prefill_tokens_sq = shape.prefill_pairs = 0
    shape.prefill_context = shape.prefill_context_sq = shape.prefill_context_max = 0


@compiled
def _end_step(w: World, first: Replica, now: int) -> None:
    gap = slot_of(first, first.first_slot).gap_ps
    first.ending = 0
    for k in range(w.ranks):
        end_batch(w, replica_of(w, first.index + k), now)
    first.host_free_ps = now + gap
    _agree(w, first)


@compiled
def _agree(w: World, first: Replica) -> None:
    """A step of the wave is over for the schedulers: go on, or stop together."""
    first.wave += 1
    first.next_ps = first.host_free_ps
    if first.wave != 1 and first.wave % w.sync_interval:
        return
    for k in range(w.ranks):
        s = replica_of(w, first.index + k)
        if s.running or s.waiting:
            return
    while first.flight:  # dummy batches still on the device
        end = slot_of(first, first.first_slot).end_ps
        for k in range(w.ranks):
            end_batch(w, replica_of(w, first.index + k), end)
    first.stepping = first.wave = 0
    first.next_ps = inbox_ps(w, first, first.host_free_ps)
    for k in range(1, w.ranks):
        s = replica_of(w, first.index + k)
        first.next_ps = min(first.next_ps, inbox_ps(w, s, first.host_free_ps))
