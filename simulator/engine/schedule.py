"""One scheduler's interface: requests come and go, steps are planned and end."""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.kv import free
from simulator.engine.layout import Replica, World, request_of, seat_of, slot_of
from simulator.engine.plain import RUNNING, hand_out, plan
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
    step.running = s.running
    step.waiting = s.waiting
    step.free_blocks = s.free_blocks
    return slot


@compiled
def update(w: World, s: Replica, now_ps: int) -> None:
    """The oldest step in flight ended."""
    step = slot_of(s, s.first_slot)
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
        dequeue(w, s, i)
    r.status = ABORTED
    free(w, s, i)
