"""One replica in time: the rules of ``simulator/replica.py``, function by function."""

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
    begun_of,
    logged_row,
    logged_step,
    model_of,
    preempted_of,
    request_of,
    row_of,
    slot_of,
)  # fmt: skip
from simulator.engine.quiet import list_rows
from simulator.engine.schedule import add, notify, schedule, update
from simulator.engine.times import predict
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
    if s.dormant or not (s.flight or s.running or s.waiting):
        s.next_ps = min(s.next_ps, max(r.due_ps, s.host_free_ps))


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
    while s.inbox_first != NONE:
        i = s.inbox_first
        r = request_of(w, i)
        if r.due_ps > now:
            break
        s.inbox_first = r.next
        r.queued_ps = now
        add(w, s, i)
    s.dormant = 0
    if s.running or s.waiting:
        ran = _begin_step(w, s, now)
        if _is_stalled(s):
            s.flight = 0
            s.dormant = 1
        elif s.flight < w.depth and (ran or s.running or s.waiting):
            s.next_ps = s.host_free_ps  # room for one more batch: go on at once
            return
    if s.flight:
        s.ending = 1
        s.next_ps = max(slot_of(s, s.first_slot).end_ps, s.host_free_ps)
    else:
        s.next_ps = _inbox_ps(w, s, now)


@compiled
def _is_stalled(s: Replica) -> bool:
    """Whether nothing runs until another engine has given or taken KV."""
    if s.holding == 0 and s.kept == 0:
        return False
    tokens = 0
    for k in range(s.flight):
        tokens += slot_of(s, (s.first_slot + k) % 2).tokens
    return tokens == 0


@compiled
def _inbox_ps(w: World, s: Replica, earliest: int) -> int:
    if s.inbox_first == NONE:
        return NEVER
    return max(request_of(w, s.inbox_first).due_ps, earliest)


@compiled
def _begin_step(w: World, s: Replica, now: int) -> bool:
    """Plan a step and put it in time; False if it has no token."""
    begun = w.begun
    step = slot_of(s, schedule(w, s))
    while step.preempted and not w.error:
        _check_preemptions(w, s, step)
        if step.tokens:
            break
        s.flight -= 1  # everything was preempted: retry at once
        step = slot_of(s, schedule(w, s))
    if not step.quiet:
        for at in range(step.rows):
            r = request_of(w, row_of(step, at).request)
            if r.first_scheduled_ps < 0:
                r.first_scheduled_ps = now
    step.start_ps = now
    step.forward_ps = step.gap_ps = host = 0
    if step.tokens:
        m = model_of(w, 0)
        predict(m)
        step.forward_ps = m.forward_ps
        step.gap_ps = m.gap_ps
        host = m.host_ps
        s.empty = 0
    elif not _is_stalled(s):
        s.empty += 1
        if s.empty > w.depth + 2:
            _fail(w, s, STUCK, NONE)
    if w.depth == 1:
        step.end_ps = now + host + step.forward_ps
    else:
        s.host_free_ps = now + host
        s.device_free_ps = max(s.host_free_ps, s.device_free_ps) + step.forward_ps
        step.end_ps = s.device_free_ps
    for k in range(begun, w.begun):
        late = w.loads_late and step.tokens
        begun_of(w, k).at_ps = step.end_ps if late else now + host
    return step.tokens > 0


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
def _end_step(w: World, s: Replica, now: int) -> None:
    step = slot_of(s, s.first_slot)
    s.ending = 0
    step.end_ps = now
    if step.tokens:
        if w.steps_room:
            _log_step(w, s, step)
        if w.rows_room:
            _log_rows(w, s, step)
        s.steps += 1
    update(w, s, now)
    s.host_free_ps = now + step.gap_ps
    if s.flight or s.running or s.waiting:
        s.next_ps = s.host_free_ps
    else:
        s.next_ps = _inbox_ps(w, s, s.host_free_ps)


@compiled
def _log_step(w: World, s: Replica, step: Step) -> None:
    log = logged_step(w, w.steps)
    w.steps += 1
    log.replica = s.index
    log.step = s.steps
    log.start_ps = step.start_ps
    log.end_ps = step.end_ps
    log.forward_ps = step.forward_ps
    log.prefill_tokens = step.prefill_tokens
    log.tokens = step.tokens
    log.running = step.running
    log.waiting = step.waiting
    log.free_blocks = step.free_blocks
    log.preempted = step.preempted


@compiled
def _log_rows(w: World, s: Replica, step: Step) -> None:
    if step.quiet:
        list_rows(w, s, step, s.ended - w.depth + 1)
    for at in range(step.rows):
        row, log = row_of(step, at), logged_row(w, w.rows)
        w.rows += 1
        log.replica = s.index
        log.step = s.steps
        log.request = row.request
        log.tokens = row.tokens
        log.computed = row.computed
        log.emits = row.emits
