"""One replica in time: the rules of ``simulator/replica.py``, function by function."""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.layout import (
    DRAWS_APART,
    Replica,
    World,
    begun_of,
    model_of,
    shape_of,
    slot_of,
    stage_of,
)  # fmt: skip
from simulator.engine.schedule import notify
from simulator.engine.times import predict
from simulator.engine.turn import drain, end_batch, inbox_ps, is_stalled, plan_batch


@compiled
def tell(w: World, s: Replica, i: int, at_ps: int) -> None:
    """What the KV connector reports of a request."""
    notify(w, s, i)
    if s.dormant:
        s.next_ps = min(s.next_ps, max(at_ps, s.host_free_ps))


@compiled
def advance(w: World, s: Replica) -> None:
    """Process the event at ``next_ps``."""
    if s.ending:
        _end_step(w, s, s.next_ps)
    else:
        _wake(w, s, s.next_ps)


@compiled
def _wake(w: World, s: Replica, now: int) -> None:
    drain(w, s, now)
    s.dormant = 0
    if s.running or s.waiting:
        ran = _begin_step(w, s, now)
        if is_stalled(w, s):
            s.flight = 0
            s.dormant = 1
        elif s.flight < w.depth and (ran or s.running or s.waiting):
            s.next_ps = s.host_free_ps  # room for one more batch: go on at once
            return
    if s.flight:
        s.ending = 1
        s.next_ps = max(slot_of(s, s.first_slot).end_ps, s.host_free_ps)
    else:
        s.next_ps = inbox_ps(w, s, now)


@compiled
def _begin_step(w: World, s: Replica, now: int) -> bool:
    """Plan a step and put it in time; False if it has no token."""
    begun = w.begun
    step = slot_of(s, plan_batch(w, s, now))
    step.start_ps = now
    step.forward_ps = step.gap_ps = host = head = hop = 0
    if step.tokens:
        m = model_of(w, 0)
        shape = shape_of(m, 0)
        shape.engine_tokens = shape.most_tokens = step.tokens
        shape.engine_prefill = shape.prefill_tokens
        shape.most_rows = shape.rows
        shape.draw = s.index * DRAWS_APART + s.begun
        s.begun += 1
        predict(m)
        step.forward_ps = m.forward_ps
        step.gap_ps = m.gap_ps
        host, head, hop = m.host_ps, m.head_ps, m.hop_ps
    if w.stages > 1:
        s.host_free_ps = now + host
        step.end_ps = _through_stages(w, s, step.forward_ps, head, hop)
        step.forward_ps += head + (w.stages - 1) * hop
    else:
        step.forward_ps += head
        step.end_ps = now + host + step.forward_ps
        if w.depth > 1:
            s.host_free_ps = now + host
            s.device_free_ps = max(s.host_free_ps, s.device_free_ps) + step.forward_ps
            step.end_ps = s.device_free_ps
    for k in range(begun, w.begun):
        late = w.loads_late and step.tokens
        begun_of(w, k).at_ps = step.end_ps if late else now + host
    return step.tokens > 0


@compiled
def _through_stages(w: World, s: Replica, forward: int, head: int, hop: int) -> int:
    """A batch passes the pipeline's stages; returns when it leaves the last."""
    at = s.host_free_ps
    for k in range(w.stages):
        stage = stage_of(s, k)
        if k:
            at += hop
        at = max(at, stage.free_ps) + forward * stage.layers // w.layers
        if k == w.stages - 1:
            at += head
        stage.free_ps = at
    return at


@compiled
def _end_step(w: World, s: Replica, now: int) -> None:
    gap = slot_of(s, s.first_slot).gap_ps
    s.ending = 0
    end_batch(w, s, now)
    s.host_free_ps = now + gap
    if s.flight or s.running or s.waiting:
        s.next_ps = s.host_free_ps
    else:
        s.next_ps = inbox_ps(w, s, s.host_free_ps)
