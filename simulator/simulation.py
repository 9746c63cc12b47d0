"""The loop: the next event of all, in a fixed order of ties, until nothing is left.

A replica is advanced from event to event; between events it needs nobody, so the loop is
also what drives stages that hand requests to one another.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from simulator.arrivals import Arrivals
from simulator.clock import ARRIVAL, STEP_END, WAKE
from simulator.records import Recorder
from simulator.replica import NEVER, Replica
from simulator.routing import Router
from simulator.scheduling.reference import Scheduler
from simulator.scheduling.request import Request, Status
from simulator.step_time.base import StepTimeModel
from traces.errors import InvariantError


@dataclass(slots=True)
class Stage:
    """Identical replicas behind a router."""

    router: Router
    replicas: list[Replica] = field(default_factory=list)


class Simulation:
    """Runs requests through a stage of co-located replicas.

    ``progress(finished)`` is called now and then with the number of finished requests.
    """

    def __init__(
        self,
        router: Router,
        make_scheduler: Callable[[], Scheduler],
        model: StepTimeModel,
        replicas: int,
        recorder: Recorder,
    ) -> None:
        self.stage = Stage(router)
        for index in range(replicas):
            self.stage.replicas.append(
                Replica(index, make_scheduler(), model, recorder.on_step, self._finish)
            )
        self._heap: list[tuple[int, int, int, int]] = []  # (ps, kind, replica or sequence, -)
        self._arrivals: Arrivals | None = None
        self._released: list[Request] = []
        self.finished = 0
        self.now_ps = 0

    def run(self, arrivals: Arrivals, progress: Callable[[int], None] | None = None) -> None:
        """Run until every released request is done. Raises InvariantError on a deadlock."""
        self._arrivals = arrivals
        for at, request in arrivals.start():
            self._release(at, request)
        replicas, router = self.stage.replicas, self.stage.router
        ticks = 0
        while self._heap:
            now, kind, which, _ = heapq.heappop(self._heap)
            if kind != ARRIVAL:
                replica = replicas[which]
                if replica.next_ps != now or replica.ending != (kind == STEP_END):
                    continue  # the replica was woken earlier than this
            self.now_ps = now
            router.observe(now, replicas)
            if kind == ARRIVAL:
                request = self._released[which]
                request.arrival_ps = now
                replica = replicas[router.choose(replicas)]
                replica.arrive(request, now)
            else:
                replica.advance()
            if replica.next_ps != NEVER:
                event = STEP_END if replica.ending else WAKE
                heapq.heappush(self._heap, (replica.next_ps, event, replica.index, 0))
            ticks += 1
            if progress is not None and not ticks & 0xFFF:
                progress(self.finished)
        left = [r for r in self._released if r.status not in (Status.FINISHED, Status.ABORTED)]
        if left:
            raise InvariantError(
                f"deadlock at {self.now_ps} ps: {len(left)} requests left and no event, "
                f"first {left[0].name!r} ({left[0].status.name})"
            )

    def _release(self, at_ps: int, request: Request) -> None:
        heapq.heappush(self._heap, (at_ps, ARRIVAL, len(self._released), 0))
        self._released.append(request)

    def _finish(self, request: Request, now_ps: int) -> None:
        self.finished += 1
        assert self._arrivals is not None
        for at, following in self._arrivals.finished(request, now_ps):
            self._release(at, following)


def conserved(requests: Sequence[Request]) -> None:
    """Raise InvariantError unless every request finished with all its tokens."""
    for r in requests:
        if r.status == Status.FINISHED and r.output != r.max_tokens:
            raise InvariantError(f"request {r.name!r} ended with {r.output}/{r.max_tokens} tokens")
