"""Runs that are partly measured and partly simulated, the rungs of the ladder."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulator.clock import PS_PER_S
from simulator.demand import Demand
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Scheduler
from simulator.scheduling.request import Request
from simulator.step_time.base import StepTimeModel
from traces.bundle import Bundle
from traces.metrics import Floats, column, request_metrics
from traces.workload import Workload, bundle_workload
from validation.mixed_clock import MixedClock
from validation.pairing import Rows, pair
from validation.predicting import Predictor
from validation.recorded_ranks import give_recorded_stamps, join_ranks
from validation.recorded_steps import NO_STEPS, PARTS, Record, RecordedBatches, read_record
from validation.rerun import Decider, Engine
from validation.rerun_ranks import RanksEngine
from validation.step_errors import accumulated_error

LADDER_METRICS = ("ttft", "tpot", "e2e")

Means = dict[str, float]
Inbox = list[tuple[int, Request]]  # picosecond at the queue
_STAMPS = ("arrival_ps", "first_token_ps", "finished_ps")


@dataclass(frozen=True, slots=True)
class Simulator:
    """What the simulator made of the two deployments, and the operator profile's step times.

    ``swaps`` are the terms that put a part of the simulated deployment in the place of the
    measured one's, each with the step times before it does.
    """

    measured: SchedulerConfig
    simulated: SchedulerConfig
    model: StepTimeModel
    profile: str | None = None  # its hash
    swaps: tuple[tuple[str, StepTimeModel], ...] = ()

    def stages(self) -> list[tuple[str, StepTimeModel]]:
        """Terms that predict forward times, and what each predicts them with."""
        names = ["operators", *(name for name, _ in self.swaps)]
        return list(zip(names, [*(model for _, model in self.swaps), self.model], strict=True))


@dataclass(frozen=True, slots=True)
class Mix:
    """One rung: which requests reach which replica when, under which rules and times."""

    demand: Workload
    at_ps: tuple[int, ...]  # at the engine's input queue, by row of the demand
    replica: tuple[int, ...]
    config: SchedulerConfig
    model: StepTimeModel
    predicted: frozenset[str] = frozenset()
    recorded: bool = False  # batches too


class Mixer:
    """The two runs, ready to be mixed."""

    def __init__(
        self, measured: Bundle, simulated: Bundle, simulator: Simulator, cluster: str
    ) -> None:
        self.pairing = pair(measured, simulated)
        self._bundle = measured
        self._simulator = simulator
        asked, self._given = bundle_workload(measured), bundle_workload(simulated)
        queued = pa.array([*by_id(measured, "queued_s")], pa.string())  # others were turned away
        kept = pc.is_in(asked.requests["request_id"], value_set=queued)
        self._asked = replace(asked, requests=asked.requests.filter(kept))
        depth = simulator.measured.max_concurrent_batches
        replicas = pc.unique(measured.table("steps")["replica"]).to_pylist()
        self.records = {r: read_record(measured, cluster, r, depth) for r in sorted(replicas)}
        self._ranks = simulator.measured.lock_step_ranks
        self.engines = (
            self.records
            if self._ranks == 1
            else {
                first: join_ranks(
                    measured,
                    cluster,
                    range(first, first + self._ranks),
                    self.records,
                    simulator.measured,
                )
                for first in range(0, max(replicas) + 1, self._ranks)
            }
        )  # by their first rank
        self._served = by_id(measured, "replica"), by_id(simulated, "replica")

    def mixes(self) -> Iterator[tuple[str, Mix]]:
        """The rungs between the two runs, by the name of the term that leads to each."""
        real, ours = self._simulator.measured, self._simulator.simulated
        seen, replica = self._seen(), self._replicas(self._asked, 0)
        stages = self._simulator.stages()
        mix = Mix(self._asked, _ps([seen[i] for i in _ids(self._asked)]), replica, real,
                  stages[0][1], recorded=True)  # fmt: skip
        yield "record", mix
        mix = replace(mix, recorded=False)
        yield "scheduling", mix
        given = self._given
        mix = replace(
            mix, demand=given, at_ps=self._at_queue(given), replica=self._replicas(given, 0)
        )
        yield "arrivals", mix
        routed = self._replicas(given, 1)
        if len({*mix.replica, *routed}) > 1:
            mix = replace(mix, replica=routed)
            yield "routing", mix
        mix = replace(mix, config=replace(real, num_gpu_blocks=ours.num_gpu_blocks))
        yield "kv_capacity", mix
        mix = replace(mix, config=ours)
        yield "settings", mix
        mix = replace(mix, predicted=frozenset({"host", "gap"}))
        yield "host_overhead", mix
        for name, model in stages:
            mix = replace(mix, predicted=frozenset(PARTS), model=model)
            yield name, mix

    def predictors(self) -> list[tuple[Record, Predictor]]:
        """Each engine's record, and what the term ``operators`` predicts its steps with."""
        model = self._simulator.stages()[0][1]
        return [(record, Predictor(model, first)) for first, record in self.engines.items()]

    def direct_effect(self) -> Means:
        """What predicted step times add to each request, its batches as recorded; seconds.

        Without the feedback through the queue, which the term ``operators`` has.
        """
        table = self._bundle.requests.take(pa.array(self.pairing.measured))
        stamps = [column(table, n) for n in ("arrival_s", "first_token_s", "finished_s")]
        late = [np.zeros(len(table)) for _ in stamps]
        served = column(table, "replica")
        engines = zip(self.engines, self.predictors(), strict=True)
        for first_rank, (record, predictor) in engines:
            mine = (served >= first_rank) & (served < first_rank + self._ranks)
            error = accumulated_error(record, predictor)
            for values, stamp in zip(late, stamps, strict=True):
                values[mine] = np.interp(stamp[mine], *error)
        arrival, first, finished = late
        return _means(arrival, first, finished, column(table, "output_tokens"))

    def run(self, mix: Mix) -> Means:
        """Run one rung: means over the compared requests."""
        requests = requests_of(mix.demand.requests, mix.config, mix.demand.hash_block_tokens)
        for first in sorted({r - r % self._ranks for r in mix.replica}):
            inboxes = [
                [(at, requests[i]) for at, i in sorted(
                    (mix.at_ps[i], i) for i, r in enumerate(mix.replica) if r == rank
                )]
                for rank in range(first, first + self._ranks)
            ]  # fmt: skip
            record = self.engines.get(first, NO_STEPS)
            clock = MixedClock(record, Predictor(mix.model, first), mix.predicted)
            self._run_engine(mix, record, inboxes, clock)
        names = {r.name: i for i, r in enumerate(requests)}
        kept = [requests[names[i]] for i in self.pairing.ids.to_pylist()]
        arrival, first_s, finished = (_seconds([getattr(r, n) for r in kept]) for n in _STAMPS)
        return _means(arrival, first_s, finished, np.array([r.max_tokens for r in kept], float))

    def _run_engine(
        self, mix: Mix, record: Record, inboxes: list[Inbox], clock: MixedClock
    ) -> None:
        if self._ranks > 1:
            if mix.recorded:
                give_recorded_stamps(record, [r for inbox in inboxes for _, r in inbox])
                return
            RanksEngine(inboxes, [Scheduler(mix.config) for _ in inboxes], clock).run()
            return
        (inbox,) = inboxes
        decider: Decider = Scheduler(mix.config)
        if mix.recorded:
            decider = RecordedBatches(record, {r.name: r for _, r in inbox})
        Engine(inbox, decider, clock, mix.config.max_concurrent_batches).run()

    def all_requests(self) -> list[Request]:
        """The measured bundle's requests, row by row.

        One that did not finish asks for a token more than it got, so that it is still there
        when it leaves.
        """
        table, manifest = self._bundle.requests, self._bundle.manifest
        if "status" not in table.column_names:
            return requests_of(table, self._simulator.measured, manifest.hash_block_tokens)
        more = pc.cast(pc.not_equal(pc.fill_null(table["status"], ""), "finished"), pa.int64())
        index = table.column_names.index("output_tokens")
        table = table.set_column(index, "output_tokens", pc.add(table["output_tokens"], more))
        return requests_of(table, self._simulator.measured, manifest.hash_block_tokens)

    def _seen(self) -> dict[str, float]:
        """When the recorded engine saw each request: the first step begun after it was queued."""
        served, seen = self._served[0], {}
        starts = {
            rank: dict(zip(record.number, record.start_s, strict=True))
            for first, record in self.engines.items()
            for rank in range(first, first + self._ranks)
        }
        for name, queued in by_id(self._bundle, "queued_s").items():
            rank = served.get(name, 0)
            own = self.records.get(rank, NO_STEPS)
            step = bisect_left(own.start_s, queued)
            seen[name] = starts[rank][own.number[step]] if step < len(own.start_s) else queued
        return seen

    def _at_queue(self, demand: Workload) -> tuple[int, ...]:
        delay = self._simulator.model.frontend_ps
        return tuple(ps + delay for ps in _ps(demand.requests["arrival_s"].to_pylist()))

    def _replicas(self, demand: Workload, side: int) -> tuple[int, ...]:
        """Who served each request in the measured (0) or simulated (1) run, else in the other."""
        first, second = self._served[side], self._served[1 - side]
        return tuple(first.get(i, second.get(i, 0)) for i in _ids(demand))


def requests_of(table: pa.Table, config: SchedulerConfig, hash_tokens: int | None) -> list[Request]:
    """The requests of a workload's table, row by row, for an engine of ``config``."""
    demand = Demand(table, config, hash_tokens)
    return [demand.make(i) for i in range(len(demand))]


def _means(arrival: Floats, first: Floats, finished: Floats, tokens: Floats) -> Means:
    """Mean TTFT, TPOT and end-to-end time, seconds, by ``traces.metrics``' formulas."""
    several = tokens >= 2
    tpot = ((finished - first) / np.maximum(tokens - 1, 1))[several]
    return dict(zip(LADDER_METRICS, map(mean_of, (first - arrival, tpot, finished - arrival)),
                    strict=True))  # fmt: skip


def means_of(bundle: Bundle, rows: Rows) -> Means:
    values = request_metrics(bundle)
    return {m: mean_of(values[m][rows]) for m in LADDER_METRICS}


def mean_of(values: Floats) -> float:
    """Mean of what is known, 0.0 if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def by_id(bundle: Bundle, name: str) -> dict[str, Any]:
    """A column of the requests by id; nothing where it is null or absent."""
    table = bundle.requests
    if name not in table.column_names:
        return {}
    pairs = zip(table["request_id"].to_pylist(), table[name].to_pylist(), strict=True)
    return {i: v for i, v in pairs if v is not None}


def _ids(demand: Workload) -> list[str]:
    ids: list[str] = demand.requests["request_id"].to_pylist()
    return ids


def _ps(seconds: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(v) for v in np.rint(np.array(seconds, float) * PS_PER_S))


def _seconds(ps: Sequence[int]) -> Floats:
    return np.array([p / PS_PER_S if p >= 0 else np.nan for p in ps])
