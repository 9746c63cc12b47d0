"""One scheduler's interface: requests come and go, steps are planned and end."""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.kv import free
from simulator.engine.layout import NONE, Replica, World, request_of, seat_of, slot_of
from simulator.engine.plain import KEPT, LOADED, LOADING, LOCAL, RUNNING, hand_out, plan
from simulator.engine.queue import dequeue, enqueue
from simulator.engine.quiet import begin, plan_quiet, settle
from simulator.scheduling.request import Status

ABORTED = int(Status.ABORTED)


@compiled
def add(w: World, s: Replica, i: int) -> None:
    """A request enters the waiting queue."""
    if s.quiet:
        settle(w, s)
    s.blocked = 0
    enqueue(w, s, i, False)


@compiled
def schedule(w: World, s: Replica) -> int:
    """Plan the next step; returns its slot."""
    slot = (s.first_slot + s.flight) % w.slots
    step = slot_of(s, slot)
    if s.quiet and (not s.quiet_left or s.flight != w.depth - 1):
        settle(w, s)
    if not ((s.quiet or begin(w, s)) and plan_quiet(w, s, step)):
        if s.quiet:
            settle(w, s)
        plan(w, s, step)
    s.flight += 1
    s.scheduled_steps += step.tokens > 0
    step.running = s.running
    step.waiting = s.waiting
    step.free_blocks = s.free_blocks
    return slot


@compiled
def update(w: World, s: Replica, now_ps: int) -> None:
    """The oldest step in flight ended."""
    step = slot_of(s, s.first_slot)
    s.ended_steps += step.tokens > 0
    while s.deferred_first != NONE and request_of(w, s.deferred_first).fence <= s.ended_steps:
        if s.quiet:
            settle(w, s)
        s.blocked = 0
        free(w, s, s.deferred_first)
        s.deferred_first = request_of(w, s.deferred_first).next
    s.first_slot = (s.first_slot + 1) % w.slots
    s.flight -= 1
    if step.quiet:
        s.ended += 1
    else:
        hand_out(w, s, step, now_ps)


@compiled
def abort(w: World, s: Replica, i: int) -> None:
    """The client went away."""
    if s.quiet:
        settle(w, s)
    s.blocked = 0
    r = request_of(w, i)
    if r.status == RUNNING:
        kept = 0
        for at in range(s.running):
            seat_of(s, kept).value = seat_of(s, at).value
            kept += seat_of(s, at).value != i
        s.running = kept
    else:
        s.loaded -= r.remote == LOADED
        dequeue(w, s, i)
    r.status = ABORTED
    if r.remote == LOADING:
        return  # into its blocks: they are free when the KV has come
    if w.defers_frees and r.in_flight:
        _defer(w, s, i)
    else:
        free(w, s, i)


@compiled
def _defer(w: World, s: Replica, i: int) -> None:
    """Free the blocks of a request when the steps in flight have ended."""
    r = request_of(w, i)
    r.fence = s.scheduled_steps
    r.next = NONE
    if s.deferred_first == NONE:
        s.deferred_first = i
    else:
        request_of(w, s.deferred_last).next = i
    s.deferred_last = i


@compiled
def notify(w: World, s: Replica, i: int) -> None:
    """The KV of a request has come, or its kept blocks are needed no longer."""
    if s.quiet:
        settle(w, s)
    r = request_of(w, i)
    if r.remote == KEPT:
        r.remote = LOCAL
        s.kept -= 1
        s.blocked = 0
        free(w, s, i)
        return
    r.remote = LOADED
    s.loaded += 1
    if r.status == ABORTED:
        s.loaded -= 1
        s.blocked = 0
        free(w, s, i)
