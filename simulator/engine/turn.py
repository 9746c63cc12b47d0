"""What replicas do at their events, alone or in lock-step: see ``simulator/replica.py``."""

from __future__ import annotations

from simulator.clock import NEVER
from simulator.engine.build import compiled
from simulator.engine.layout import (
    NONE,
    PREEMPTED_FOR_EVER,
    STUCK,
    Replica,
    Step,
    World,
    logged_row,
    logged_step,
    preempted_of,
    replica_of,
    request_of,
    row_of,
    slot_of,
)  # fmt: skip
from simulator.engine.quiet import list_rows
from simulator.engine.records import copy
from simulator.engine.schedule import add, schedule, update
from simulator.scheduling.request import MAX_PREEMPTIONS


@compiled
def send(w: World, s: Replica, i: int, at_ps: int) -> None:
    """A request is sent here; it reaches the engine's input queue a little later."""
    r = request_of(w, i)
    r.replica = s.index
    r.due_ps = at_ps + w.frontend_ps
    r.next = NONE
    if s.inbox_first == NONE:
        s.inbox_first = i
    else:
        request_of(w, s.inbox_last).next = i
    s.inbox_last = i
    s.unfinished += 1
    first = replica_of(w, s.index - s.index % w.ranks)  # it keeps the clock
    busy = first.stepping if w.ranks > 1 else s.flight + s.running + s.waiting
    if s.dormant or not busy:
        first.next_ps = min(first.next_ps, max(r.due_ps, first.host_free_ps))


@compiled
def drain(w: World, s: Replica, now: int) -> None:
    """Requests that have reached the input queue enter the scheduler."""
    while s.inbox_first != NONE:
        i = s.inbox_first
        r = request_of(w, i)
        if r.due_ps > now:
            break
        s.inbox_first = r.next
        r.queued_ps = now
        add(w, s, i)


@compiled
def inbox_ps(w: World, s: Replica, earliest: int) -> int:
    """When the next request reaches the input queue, but not before ``earliest``."""
    if s.inbox_first == NONE:
        return NEVER
    return max(request_of(w, s.inbox_first).due_ps, earliest)


@compiled
def plan_batch(w: World, s: Replica, now: int) -> int:
    """Plan a step and note whom it runs for the first time; returns its slot."""
    slot = schedule(w, s)
    step = slot_of(s, slot)
    while step.preempted and not w.error:
        _check_preemptions(w, s, step)
        if step.tokens:
            break
        s.flight -= 1  # everything was preempted: retry at once
        slot = schedule(w, s)
        step = slot_of(s, slot)
    if not step.quiet:
        for at in range(step.rows):
            r = request_of(w, row_of(step, at).request)
            if r.first_scheduled_ps < 0:
                r.first_scheduled_ps = now
    if step.tokens:
        s.empty = 0
    elif not is_stalled(w, s):
        s.empty += 1
        if s.empty > w.depth + 2:
            _fail(w, s, STUCK, NONE)
    return slot


@compiled
def is_stalled(w: World, s: Replica) -> bool:
    """Whether nothing runs until another engine has given or taken KV."""
    if s.holding == 0 and s.kept == 0:
        return False
    tokens = 0
    for k in range(s.flight):
        tokens += slot_of(s, (s.first_slot + k) % w.slots).tokens
    return tokens == 0


@compiled
def _check_preemptions(w: World, s: Replica, step: Step) -> None:
    for k in range(step.preempted):
        i = preempted_of(step, k).value
        if request_of(w, i).preemptions > MAX_PREEMPTIONS:
            _fail(w, s, PREEMPTED_FOR_EVER, i)


@compiled
def _fail(w: World, s: Replica, error: int, i: int) -> None:
    if not w.error:
        w.error = error
        w.error_replica = s.index
        w.error_request = i


@compiled
def end_batch(w: World, s: Replica, end_ps: int) -> None:
    """The oldest step in flight ended."""
    step = slot_of(s, s.first_slot)
    step.end_ps = end_ps
    if step.tokens or step.dummy:
        _log(w, s, step)
        s.steps += 1
    update(w, s, end_ps)


@compiled
def _log(w: World, s: Replica, step: Step) -> None:
    """Keep the step, and its rows, where that is asked for."""
    if w.steps_room:
        step.replica, step.step = s.index, s.steps
        copy(logged_step(w, w.steps), step)
        w.steps += 1
    if w.rows_room:
        if step.quiet:
            list_rows(w, s, step, s.ended - w.depth + 1)
        for at in range(step.rows):
            row = row_of(step, at)
            row.replica, row.step = s.index, s.steps
            copy(logged_row(w, w.rows), row)
            w.rows += 1
