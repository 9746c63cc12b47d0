"""All replicas in time: which one's event is next, and how far they may run.

A tournament finds it: replicas are the leaves of a binary tree whose inner nodes hold the
winner below them, so an event costs log2(replicas) comparisons.
"""

from __future__ import annotations

from simulator.engine.advance import advance
from simulator.engine.build import compiled
from simulator.engine.layout import NONE, Replica, World, replica_of, winner_of
from simulator.engine.lockstep import advance_together


@compiled
def run_to(w: World, limit_ps: int, events: int, in_order: bool) -> int:
    """Process events before ``limit_ps``, ``events`` at most; returns the time of the next.

    In order means by time over all replicas, stopping when a request finishes or begins to
    load its KV; otherwise
    each replica runs ahead to the limit. Stops too when a log is full, or on an error.
    """
    while True:
        e = winner_of(w, 1).value
        s = replica_of(w, e)
        while events > 0 and s.next_ps < limit_ps and not _must_stop(w):
            if w.ranks > 1:
                advance_together(w, s)
            else:
                advance(w, s)
            events -= 1
            if in_order:
                break
        play(w, e)
        next_ps = replica_of(w, winner_of(w, 1).value).next_ps
        seen = in_order and (w.finished or w.begun)
        if events == 0 or next_ps >= limit_ps or seen or _must_stop(w):
            return next_ps


@compiled
def _must_stop(w: World) -> bool:
    """Whether there is an error, or no room for what one more event may leave."""
    rows = w.max_seqs * w.ranks
    if w.error or w.finished + rows > w.finished_room:
        return True
    if w.steps_room and w.steps + 2 * w.ranks - (w.ranks == 1) > w.steps_room:
        return True
    return w.rows_room > 0 and w.rows + rows > w.rows_room


@compiled
def play(w: World, e: int) -> None:
    """Replica ``e`` has another next event: play its matches again."""
    node = (w.leaves + e) // 2
    while node > 0:
        a, b = winner_of(w, 2 * node).value, winner_of(w, 2 * node + 1).value
        a_first = b == NONE or (a != NONE and _is_first(replica_of(w, a), replica_of(w, b)))
        winner_of(w, node).value = a if a_first else b
        node //= 2


@compiled
def _is_first(a: Replica, b: Replica) -> bool:
    """The order of ``simulator/clock.py``."""
    if a.next_ps != b.next_ps:
        return a.next_ps < b.next_ps
    if a.ending != b.ending:
        return a.ending > b.ending
    return a.index < b.index
