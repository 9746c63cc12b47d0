"""The loop: arrivals in order of time, and between them each replica on its own.

A replica needs nobody until the next outside event (an arrival; elsewhere a handover or a
lock-step partner), so it is advanced there in one call. Where a finish can release an
arrival, or a router watches the replicas, events go one by one in the order of ``clock``.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from simulator.arrivals import Arrivals
from simulator.clock import STEP_END, WAKE
from simulator.demand import Demand
from simulator.replica import NEVER, Replica, Step
from simulator.routing import create_router
from simulator.scheduling.reference import Scheduler
from simulator.scheduling.request import Request
from simulator.step_time.base import StepTimeModel
from traces.errors import InvariantError

PROGRESS_EVERY = 512


class Simulation:
    """Runs a demand through co-located replicas behind a router.

    ``on_step(replica, step)`` is told of every step if given; ``progress(finished)`` is
    called now and then.
    """

    def __init__(
        self,
        demand: Demand,
        router: str,
        replicas: int,
        make_scheduler: Callable[[], Scheduler],
        model: StepTimeModel,
        *,
        on_step: Callable[[Replica, Step], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.demand = demand
        self.replicas = [
            Replica(i, make_scheduler(), model, self._finish, on_step) for i in range(replicas)
        ]
        self.router = create_router(router, self.replicas)
        self.finished = 0
        self._progress = progress
        self._arrivals: Arrivals

    def run(self, arrivals: Arrivals) -> None:
        """Run until every request is done; raises InvariantError on a deadlock."""
        self._arrivals = arrivals
        coupled = arrivals.coupled or self.router.observes
        heap: list[tuple[int, int, int]] = []  # (ps, kind, replica): an entry may be stale
        while True:
            arrival = arrivals.next_ps
            if heap and heap[0][0] < arrival:
                now, kind, index = heapq.heappop(heap)
                replica = self.replicas[index]
                if replica.next_ps != now or replica.ending != (kind == STEP_END):
                    continue
                if coupled:
                    self.router.observe(now)
                    replica.advance()
                else:
                    replica.run(arrival)
            elif arrival == NEVER:
                break
            else:
                self.router.observe(arrival)
                request = arrivals.pop()
                replica = self.replicas[self.router.choose()]
                before = replica.next_ps
                replica.arrive(request)
                if replica.next_ps == before:
                    continue
            if replica.next_ps != NEVER:
                kind = STEP_END if replica.ending else WAKE
                heapq.heappush(heap, (replica.next_ps, kind, replica.index))
        if self.finished < len(self.demand):
            raise InvariantError(self._deadlock())

    def _finish(self, replica: Replica, request: Request, now_ps: int) -> None:
        self.demand.settle(request)
        self.router.finished(replica.index)
        self._arrivals.finished(now_ps)
        self.finished += 1
        if self._progress is not None and not self.finished % PROGRESS_EVERY:
            self._progress(self.finished)

    def _deadlock(self) -> str:
        stuck = [f"replica {r.index}: {r.running} running, {r.waiting} waiting"
                 for r in self.replicas if r.unfinished]  # fmt: skip
        left = len(self.demand) - self.finished
        return f"deadlock: {left} requests left and no event; {'; '.join(stuck)}"
