"""A cluster in a simulation: replicas behind a router, advanced to the next outside event."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.demand import Demand
from simulator.fleet.base import MANY, Finish, Fleet
from simulator.routing import create_router


class Stage:
    """``fleet`` serves ``demand``, a request goes where the router so named sends it."""

    def __init__(self, demand: Demand, router: str, fleet: Fleet) -> None:
        self.demand = demand
        self.fleet = fleet
        self.router = create_router(router, fleet.loads, demand)

    def arrive(self, request: int, at_ps: int) -> int:
        """A request reaches the front end; returns the replica that takes it."""
        self.router.observe(at_ps)
        replica = self.router.choose(request)
        self.fleet.arrive(request, replica, at_ps)
        return replica

    def run(self, limit_ps: int, *, in_order: bool) -> Sequence[Finish]:
        """Process events before ``limit_ps``, as far as nobody looks in between.

        Returns the requests that finished. ``in_order``: see ``Fleet.run``.
        """
        fleet, router, events = self.fleet, self.router, MANY
        if router.look_ps < limit_ps:
            if fleet.next_ps >= router.look_ps:
                router.observe(fleet.next_ps)
            if fleet.next_ps >= router.look_ps:
                events, in_order = 1, True  # nothing had changed: it looks at each event
            else:
                limit_ps = min(limit_ps, router.look_ps)
        finished = fleet.run(limit_ps, events=events, in_order=in_order)
        for finish in finished:
            router.finished(finish[1], finish[0])
        return finished
