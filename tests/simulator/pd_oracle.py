"""A disaggregated deployment event by event, as plainly as can be: an oracle for small worlds.

It looks through everything for the next event, and moves every transfer along at each.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from typing import Any

from simulator.clock import NEVER
from simulator.demand import Demand
from simulator.disaggregation.connection import Connection
from simulator.disaggregation.setup import Side
from simulator.replica import Rank, Replica
from simulator.routing import create_router
from simulator.scheduling.reference import Scheduler
from simulator.scheduling.request import Remote, Request

LANDS, ARRIVES, HANDED_OVER, ENTERS, LAPSES = range(1, 6)
Key = tuple[int, int]


class Oracle:
    """``times[request]`` holds what happened to a request, by name, in picoseconds."""

    def __init__(
        self, prefill: Side, decode: Side, demands: tuple[Demand, Demand], connection: Connection,
        proxy_ps: int,
    ) -> None:  # fmt: skip
        self.demands, self.connection = demands, connection
        self.sides = [
            [
                Replica(
                    Rank(i, Scheduler(side.config), side.model.frontend_ps, self.on_finish, None,
                         self.on_load, loads_late=side.loads_late),
                    side.model,
                )
                for i in range(side.schedulers)
            ]
            for side in (prefill, decode)
        ]  # fmt: skip
        self.routers = [
            create_router(side.router, [rank for r in replicas for rank in r.ranks], demand)
            for side, replicas, demand in zip(
                (prefill, decode), self.sides, demands, strict=True
            )
        ]  # fmt: skip
        self.push = connection.link.transfer == "push"
        self.proxy_ps = proxy_ps
        self.now = 0
        self.stage = 0
        count = len(demands[0])
        self.times: list[dict[str, int]] = [{} for _ in range(count)]
        self.requests: list[list[Request | None]] = [[None] * count, [None] * count]
        self.events = [(int(at), ARRIVES, i) for i, at in enumerate(demands[0].arrival_ps)]
        self.links: dict[Key, list[tuple[int, list[Fraction]]]] = {}

    def run(self) -> list[dict[str, int]]:
        """To the end."""
        while (following := self.next_ps()) < NEVER:
            self.move_to(following)
            if not (self.leave() or self.happen()):
                self.step()
        return self.times

    def next_ps(self) -> int:
        """When something happens next."""
        engines = [r.next_ps for side in self.sides for r in side]
        links = [self.leaves_ps(flows) for flows in self.links.values() if flows]
        return min([*engines, *links, *(at for at, _, _ in self.events)])

    def speed(self, flows: list[Any], place: int) -> Fraction:
        """Share of the bandwidth that a transfer has."""
        kind = self.connection.link.contention
        if kind == "fifo":
            return Fraction(place == 0)
        return Fraction(1, len(flows)) if kind == "fair" else Fraction(1)

    def leaves_ps(self, flows: list[tuple[int, list[Fraction]]]) -> int:
        left = [
            max(Fraction(0), work[0]) / speed
            for place, (_, work) in enumerate(flows)
            if (speed := self.speed(flows, place))
        ]
        return self.now + ceil(min(left))

    def move_to(self, at_ps: int) -> None:
        for flows in self.links.values():
            for place, (_, work) in enumerate(flows):
                work[0] -= (at_ps - self.now) * self.speed(flows, place)
        self.now = at_ps

    def leave(self) -> bool:
        """One transfer that is over leaves its link."""
        for key in sorted(self.links):
            flows = self.links[key]
            over = [flow for flow in flows if flow[1][0] <= 0]
            if over and self.leaves_ps(flows) == self.now:
                flow = min(over, key=lambda f: f[1][0])
                flows.remove(flow)
                self.events.append((self.now + self.connection.latency_ps, LANDS, flow[0]))
                return True
        return False

    def happen(self) -> bool:
        """The first of the outside events that are due."""
        due = min((e for e in self.events if e[0] == self.now), default=None)
        if due is None:
            return False
        self.events.remove(due)
        _, kind, i = due
        {LANDS: self.land, ARRIVES: self.arrive, HANDED_OVER: self.hand_over,
         ENTERS: self.enter, LAPSES: self.lapse}[kind](i)  # fmt: skip
        return True

    def step(self) -> None:
        """One event of an engine: steps end before others begin, prefill comes first."""
        for stage, side in enumerate(self.sides):
            self.stage = stage
            due = [r for r in side if r.next_ps == self.now]
            if due:
                self.routers[stage].observe(self.now)
                min(due, key=lambda r: (not r.ending, r.index)).advance()
                return

    def send(self, stage: int, i: int) -> int:
        demand, router = self.demands[stage], self.routers[stage]
        demand.records["arrival_ps"][i] = self.now
        request = self.requests[stage][i] = demand.make(i)
        router.observe(self.now)
        replica = router.choose(i)
        self.sides[stage][replica].arrive(request, replica, self.now)
        return replica

    def needs_decode(self, i: int) -> bool:
        return bool(self.demands[0].records["remote"][i] == Remote.TO_KEEP)

    def arrive(self, i: int) -> None:
        self.times[i]["source"] = self.send(0, i)
        if self.push and self.needs_decode(i):
            self.hand_over(i)

    def hand_over(self, i: int) -> None:
        self.times[i]["destination"] = self.send(1, i)

    def on_finish(self, replica: Rank, request: Request, now_ps: int) -> None:
        stage, i = self.stage, request.index
        self.routers[stage].finished(replica.index, i)
        self.times[i]["prefilled" if stage == 0 else "finished"] = now_ps
        if stage == 1 or not self.needs_decode(i):
            self.times[i]["first_token"] = request.first_token_ps
            return
        self.times[i]["kept"] = 1
        received = now_ps + (0 if self.push else self.proxy_ps)
        lapses = now_ps + self.connection.lease_ps
        if not self.connection.link.lease_renewal or received >= lapses:
            self.events.append((lapses, LAPSES, i))
        if not self.push:
            self.events.append((received, HANDED_OVER, i))
        self.begin(i)

    def on_load(self, replica: Rank, request: Request, at_ps: int) -> None:
        times = self.times[request.index]
        times["asked"] = at_ps
        times["blocks"] = len(request.blocks[0]) - request.cached_blocks[0]
        self.begin(request.index)

    def begin(self, i: int) -> None:
        times = self.times[i]
        if "asked" in times and "prefilled" in times:
            times["start"] = max(times["asked"], times["prefilled"])
            self.events.append((times["start"] + self.connection.setup_ps, ENTERS, i))

    def enter(self, i: int) -> None:
        times = self.times[i]
        work = self.connection.work_ps(times["blocks"])
        request = self.requests[0][i]
        assert request is not None
        since = max(request.first_scheduled_ps, times["asked"])
        early = self.connection.sent_early_ps(work, times["prefilled"] - since)
        times["start"] = since if early else times["start"]
        key = self.connection.key(times["source"], times["destination"])
        self.links.setdefault(key, []).append((i, [Fraction(work - early)]))

    def land(self, i: int) -> None:
        self.times[i]["end"] = self.now
        self.release(i)
        request = self.requests[1][i]
        assert request is not None
        self.sides[1][request.replica].notify(request, request.replica, self.now)

    def lapse(self, i: int) -> None:
        self.times[i]["lost"] = self.times[i]["kept"]
        self.release(i)

    def release(self, i: int) -> None:
        if self.times[i]["kept"]:
            self.times[i]["kept"] = 0
            request = self.requests[0][i]
            assert request is not None
            self.sides[0][request.replica].notify(request, request.replica, self.now)
