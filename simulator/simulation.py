"""The loop: arrivals in order of time, and between them each replica on its own.

A replica needs nobody until the next outside event, so a fleet is advanced there in one
call. Where a finish can release an arrival, or a router watches the replicas, the fleet
stops there too.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.arrivals import Arrivals
from simulator.clock import NEVER
from simulator.demand import Demand
from simulator.fleet.base import Fleet
from simulator.stage import Stage
from traces.errors import InvariantError

PROGRESS_EVERY = 512


class Simulation:
    """Runs a demand through co-located replicas behind a router.

    ``progress(finished)`` is called now and then.
    """

    def __init__(
        self,
        demand: Demand,
        router: str,
        fleet: Fleet,
        *,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.demand = demand
        self.fleet = fleet
        self.stage = Stage(demand, router, fleet)
        self.finished = 0
        self.stopped = False
        self._progress, self._report_at = progress, 0

    def stop(self) -> None:
        """Let ``run`` return soon, with requests unfinished."""
        self.stopped = True

    def run(self, arrivals: Arrivals) -> None:
        """Run until every request is done; raises InvariantError on a deadlock."""
        fleet = self.fleet
        while not self.stopped:
            at = arrivals.next_ps
            while fleet.next_ps < at <= arrivals.next_ps and not self.stopped:
                self._advance(at, arrivals)
            if arrivals.next_ps < at or self.stopped:
                continue  # a finish released another
            if at == NEVER:
                break
            self.stage.arrive(arrivals.pop(), at)
        fleet.close()
        if self.finished < len(self.demand) and not self.stopped:
            left = len(self.demand) - self.finished
            raise InvariantError(f"deadlock: {left} requests left and no event; {fleet.describe()}")

    def check(self) -> None:
        """Raise InvariantError unless all KV blocks have come back."""
        self.fleet.check()

    def _advance(self, limit_ps: int, arrivals: Arrivals) -> None:
        for finish in self.stage.run(limit_ps, in_order=arrivals.coupled):
            arrivals.finished(finish[2])
            self.finished += 1
        if self.finished >= self._report_at:
            self._progress(self.finished)
            self._report_at = self.finished + PROGRESS_EVERY
