"""The waiting queue: a list linked through the requests, in the policy's order.

First come, first served: arrivals go to the end, preempted and skipped requests to the
front. By priority: each goes to its rank (priority, arrival, name), searched from the end.

Requests that hold blocks, as their KV comes or came from another engine, stand before all
others (vLLM's ``kv_holding_waiting``), in an order of their own.
"""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.layout import NONE, Replica, Request, World, request_of
from simulator.scheduling.request import Remote

LOADING, LOADED = int(Remote.LOADING), int(Remote.LOADED)


@compiled
def enqueue(w: World, s: Replica, i: int, front: bool) -> None:
    """A request waits; ``front`` puts it back where it came from."""
    r = request_of(w, i)
    after = s.holding_last if front else s.waiting_last
    if w.by_priority:
        after = s.waiting_last
        while after != s.holding_last and _precedes(r, request_of(w, after)):
            after = request_of(w, after).prev
    _insert(w, s, i, after)


@compiled
def hold(w: World, s: Replica, i: int) -> None:
    """A waiting request holds blocks from now on."""
    dequeue(w, s, i)
    r = request_of(w, i)
    after = s.holding_last
    if w.by_priority:
        while after != NONE and _precedes(r, request_of(w, after)):
            after = request_of(w, after).prev
    if after == s.holding_last:
        s.holding_last = i
    s.holding += 1
    _insert(w, s, i, after)


@compiled
def _insert(w: World, s: Replica, i: int, after: int) -> None:
    r = request_of(w, i)
    r.prev = after
    if after == NONE:
        r.next = s.waiting_first
        s.waiting_first = i
    else:
        r.next = request_of(w, after).next
        request_of(w, after).next = i
    if r.next == NONE:
        s.waiting_last = i
    else:
        request_of(w, r.next).prev = i
    s.waiting += 1


@compiled
def dequeue(w: World, s: Replica, i: int) -> None:
    """A request waits no longer."""
    r = request_of(w, i)
    if r.remote == LOADING or r.remote == LOADED:
        s.holding -= 1
        if s.holding_last == i:
            s.holding_last = r.prev
    if r.prev == NONE:
        s.waiting_first = r.next
    else:
        request_of(w, r.prev).next = r.next
    if r.next == NONE:
        s.waiting_last = r.prev
    else:
        request_of(w, r.next).prev = r.prev
    s.waiting -= 1


@compiled
def _precedes(a: Request, b: Request) -> bool:
    if a.priority != b.priority:
        return a.priority < b.priority
    if a.arrival_ps != b.arrival_ps:
        return a.arrival_ps < b.arrival_ps
    return a.rank < b.rank
