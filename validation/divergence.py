"""Where the simulated schedule first leaves the recorded one, and why.

The scheduler runs under the record's own arrivals and step times
(``simulator.recorded``), so a difference is one of its decisions, not of its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.recorded import replay_recorded, replay_recorded_pair
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Batch, Scheduler
from simulator.scheduling.request import Request, Status
from traces.bundle import Bundle
from validation.recorded_steps import Record


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first step whose batch differs: tokens of one request there (0: not in the batch)."""

    cluster: str
    replica: int
    step: int
    time_s: float
    request_id: str
    engine_tokens: int
    simulator_tokens: int
    why: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many recorded steps the simulator's scheduler decided alike, under recorded times."""

    steps: int
    equal: int
    first: Divergence | None

    @property
    def share(self) -> float:
        """Share of equal steps; 1.0 if there were none."""
        return self.equal / self.steps if self.steps else 1.0


def compare_schedules(
    bundle: Bundle,
    requests: Sequence[Request],
    config: SchedulerConfig,
    records: dict[int, Record],
    cluster: str,
) -> Schedule:
    """Run the scheduler under the times of ``bundle``; ``records`` are its replicas'.

    ``requests`` are the bundle's, row by row, and used up.
    """
    make, found = _watching([(cluster, r, records[r]) for r in sorted(records)])
    agreement = replay_recorded(bundle, requests, config, make)
    return Schedule(agreement.steps, agreement.equal, _first(found))


def compare_pair_schedules(
    bundle: Bundle,
    requests: tuple[Sequence[Request], Sequence[Request]],
    configs: tuple[SchedulerConfig, SchedulerConfig],
    records: Sequence[tuple[str, dict[int, Record]]],
) -> Schedule:
    """The same for a prefill and a decode cluster: ``records`` of each, with its name."""
    make, found = _watching([(name, r, of[r]) for name, of in records for r in sorted(of)])
    agreements = replay_recorded_pair(bundle, requests, configs, make).values()
    equal, steps = (sum(getattr(a, n) for a in agreements) for n in ("equal", "steps"))
    return Schedule(steps, equal, _first(found))


def _watching(
    records: Sequence[tuple[str, int, Record]],
) -> tuple[Callable[[SchedulerConfig], Scheduler], list[Divergence]]:
    """What makes one watched scheduler after the other, and where they leave what they find."""
    watches, found = iter(records), list[Divergence]()

    def make(config: SchedulerConfig) -> Scheduler:
        cluster, replica, record = next(watches)
        return _Watched(config, replica, record, cluster, found)

    return make, found


def _first(found: Sequence[Divergence]) -> Divergence | None:
    return min(found, key=lambda d: (d.time_s, d.cluster, d.replica), default=None)


class _Watched(Scheduler):
    """A scheduler that holds its batches against a record up to the first difference."""

    def __init__(
        self,
        config: SchedulerConfig,
        replica: int,
        record: Record,
        cluster: str,
        found: list[Divergence],
    ) -> None:
        super().__init__(config)
        self._replica, self._record, self._cluster, self._found = replica, record, cluster, found
        self._steps: Iterator[int] | None = iter(range(len(record)))
        self._known: dict[str, Request] = {}
        self._preempted: list[Request] = []  # in this step, which may take several attempts

    def add(self, request: Request) -> None:
        super().add(request)
        self._known[request.name] = request

    def schedule(self) -> Batch:
        free, running = self.kv.free_blocks, len(self.running)
        batch = super().schedule()
        if self._steps is None:
            return batch
        self._preempted += batch.preempted
        if not batch.rows and batch.preempted:
            return batch
        if (step := next(self._steps, None)) is not None:
            theirs = {name: tokens for name, _, tokens, _ in self._record.rows[step]}
            ours = {row.request.name: row.tokens for row in batch.rows}
            if ours != theirs:
                self._note(step, ours, theirs, batch, {"free": free, "running": running})
        self._preempted = []
        return batch

    def _note(
        self,
        step: int,
        ours: dict[str, int],
        theirs: dict[str, int],
        batch: Batch,
        state: dict[str, Any],
    ) -> None:
        """Keep the difference of the request that reached the queue first."""
        self._steps = None
        names = [n for n in {**theirs, **ours} if ours.get(n) != theirs.get(n)]
        order = {name: i for i, name in enumerate(self._known)}
        name = min(names, key=lambda n: order.get(n, len(order)))
        engine, simulator = theirs.get(name, 0), ours.get(name, 0)
        self._found.append(
            Divergence(
                self._cluster,
                self._replica,
                self._record.number[step],
                self._record.start_s[step],
                name,
                engine,
                simulator,
                self._why(name, engine, simulator, batch, state),
            )
        )

    def _why(
        self, name: str, engine: int, simulator: int, batch: Batch, state: dict[str, Any]
    ) -> str:
        request = self._known.get(name)
        left = f"{state['free']} free blocks and {state['running']} running before the step"
        if request is None:
            return "the engine ran a request that has not reached the simulator's queue"
        if engine and simulator:
            return f"another chunk: {batch.tokens} tokens in the simulator's batch, {left}"
        if simulator:
            return f"the simulator ran it, the engine did not: {left}"
        if request in self._preempted:
            return f"the simulator preempted it in this step: {left}"
        if request.status == Status.PREEMPTED:
            return f"the simulator had preempted it before: {left}"
        if request.status == Status.WAITING:
            return f"the simulator left it waiting: {batch.tokens} tokens in its batch, {left}"
        if request.status >= Status.FINISHED:
            return "it had already finished in the simulator"
        return f"the simulator gave it no token: {batch.tokens} tokens in its batch, {left}"
