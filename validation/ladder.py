"""The attribution ladder: what explains the difference between simulated and measured.

It starts at the measured run and puts one simulated thing after another in the place of the
measured one, until everything is simulated; each rung is a run of its own, and a term is
the step from one rung to the next, so that the terms add up to the whole error::

    measured       the run itself
    record         recorded batches at recorded step times, run by this module's engine
    scheduling     batches decided by the simulator's scheduler
    arrivals       requests reach the queue as the simulator's front end lets them
    routing        replicas chosen by the simulator (where there are several)
    kv_capacity    KV blocks of the simulated deployment
    settings       its other scheduler settings
    host_overhead  host time and the gap between steps predicted
    operators      forward time predicted: nothing measured is left
    rest           the simulated run itself: what this module's plain engine leaves out

Scheduling comes before predicted times because a schedule follows the times: a late step
that lets another request in is the operators' doing. Values are means over the compared
requests of MEASURED alone, seconds; repeats have batches and times of their own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from traces.errors import TraceError
from traces.metrics import Floats, column, request_metrics
from traces.workload import Workload, bundle_workload
from validation import provenance
from validation.divergence import compare_schedules
from validation.pairing import Rows, pair
from validation.recorded_steps import NO_STEPS, PARTS, MixedClock, RecordedBatches, read_record
from validation.rerun import Decider, Engine
from validation.step_errors import accumulated_error, step_errors

LADDER_METRICS = ("ttft", "tpot", "e2e")
TERMS = {
    "record": "recorded batches at recorded times",
    "scheduling": "batches decided by the simulator",
    "arrivals": "arrivals and front end simulated",
    "routing": "replicas chosen by the simulator",
    "kv_capacity": "KV blocks of the simulated deployment",
    "settings": "other scheduler settings of the simulated deployment",
    "host_overhead": "host time between forwards predicted",
    "operators": "forward times predicted",
    "rest": "the simulated run itself",
}

Means = dict[str, float]
_STAMPS = ("arrival_ps", "first_token_ps", "finished_ps")


@dataclass(frozen=True, slots=True)
class Simulator:
    """What the simulator made of the two deployments, and the operator profile's step times."""

    measured: SchedulerConfig
    simulated: SchedulerConfig
    model: StepTimeModel
    profile: str | None = None  # its hash


@dataclass(frozen=True, slots=True)
class Mix:
    """One rung: which requests reach which replica when, under which rules and times."""

    demand: Workload
    at_ps: tuple[int, ...]  # at the engine's input queue, by row of the demand
    replica: tuple[int, ...]
    config: SchedulerConfig
    predicted: frozenset[str] = frozenset()
    recorded: bool = False  # batches too


def build_ladder(
    measured: Bundle,
    simulated: Bundle,
    simulator: Simulator,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Climb the ladder; returns plain data for the scorecard's ``ladder``.

    Keys: ``rungs`` and ``terms`` (name, what, and seconds by metric), ``largest`` (the
    term that is, by metric), ``schedule`` (agreement under recorded times, and the first
    divergence) and ``steps`` (predicted against measured step times of the recorded
    batches). Raises TraceError if the measured bundle does not record enough.
    """
    cluster = _check(measured, simulated)
    used = provenance.profile(simulated)["hash"]
    if simulator.profile != used and None not in (simulator.profile, used):
        raise TraceError(
            f"{simulated.path}: simulated with another operator profile ({used}) than --ladder "
            f"got ({simulator.profile})"
        )
    world = _World(measured, simulated, simulator, cluster)
    rungs: dict[str, Means] = {"measured": _means_of(measured, world.pairing.measured)}
    last: Mix | None = None
    for name, mix in world.mixes():
        progress(f"ladder: {TERMS[name]}")
        before = next(reversed(rungs.values()))
        rungs[name] = before if mix == last else world.run(mix)
        last = mix
    rungs["rest"] = _means_of(simulated, world.pairing.simulated)
    terms = _terms(rungs)
    progress("ladder: the schedule under recorded times")
    schedule = compare_schedules(
        measured, world.all_requests(), simulator.measured, world.records, cluster
    )
    return {
        "rungs": [
            {"name": n, "what": TERMS.get(n, "the run itself"), **m} for n, m in rungs.items()
        ],
        "terms": [{"name": n, "what": TERMS[n], **m} for n, m in terms.items()],
        "largest": {m: max(terms, key=lambda n: abs(terms[n][m])) for m in LADDER_METRICS},
        "schedule": {**asdict(schedule), "share": schedule.share},
        "steps": {
            **step_errors(list(world.records.values()), simulator.model),
            "effect": world.direct_effect(),
        },
    }


class _World:
    """The two runs, ready to be mixed."""

    def __init__(
        self, measured: Bundle, simulated: Bundle, simulator: Simulator, cluster: str
    ) -> None:
        self.pairing = pair(measured, simulated)
        self._bundle = measured
        self._simulator = simulator
        self._asked, self._given = bundle_workload(measured), bundle_workload(simulated)
        depth = simulator.measured.max_concurrent_batches
        replicas = pc.unique(measured.table("steps")["replica"]).to_pylist()
        self.records = {r: read_record(measured, cluster, r, depth) for r in sorted(replicas)}
        self._served = _by_id(measured, "replica"), _by_id(simulated, "replica")

    def mixes(self) -> Iterator[tuple[str, Mix]]:
        """The rungs between the two runs, by the name of the term that leads to each."""
        real, ours = self._simulator.measured, self._simulator.simulated
        seen, replica = self._seen(), self._replicas(self._asked, 0)
        mix = Mix(self._asked, _ps([seen[i] for i in _ids(self._asked)]), replica, real,
                  recorded=True)  # fmt: skip
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
        yield "operators", replace(mix, predicted=frozenset(PARTS))

    def direct_effect(self) -> Means:
        """What predicted step times add to each request, its batches as recorded; seconds.

        Without the feedback through the queue, which the term ``operators`` has.
        """
        table = self._bundle.requests.take(pa.array(self.pairing.measured))
        stamps = [column(table, n) for n in ("arrival_s", "first_token_s", "finished_s")]
        late = [np.zeros(len(table)) for _ in stamps]
        for replica, record in self.records.items():
            mine = column(table, "replica") == replica
            error = accumulated_error(record, self._simulator.model)
            for values, stamp in zip(late, stamps, strict=True):
                values[mine] = np.interp(stamp[mine], *error)
        arrival, first, finished = late
        return _means(arrival, first, finished, column(table, "output_tokens"))

    def run(self, mix: Mix) -> Means:
        """Run one rung: means over the compared requests."""
        requests = requests_of(mix.demand.requests, mix.config, mix.demand.hash_block_tokens)
        for replica in sorted(set(mix.replica)):
            record = self.records.get(replica, NO_STEPS)
            mine = [i for i, r in enumerate(mix.replica) if r == replica]
            inbox = sorted((mix.at_ps[i], i) for i in mine)
            decider: Decider = Scheduler(mix.config)
            if mix.recorded:
                decider = RecordedBatches(record, {requests[i].name: requests[i] for i in mine})
            clock = MixedClock(record, self._simulator.model, mix.predicted)
            depth = mix.config.max_concurrent_batches
            Engine([(at, requests[i]) for at, i in inbox], decider, clock, depth).run()
        names = {r.name: i for i, r in enumerate(requests)}
        kept = [requests[names[i]] for i in self.pairing.ids.to_pylist()]
        arrival, first, finished = (_seconds([getattr(r, n) for r in kept]) for n in _STAMPS)
        return _means(arrival, first, finished, np.array([r.max_tokens for r in kept], float))

    def all_requests(self) -> list[Request]:
        """The measured bundle's requests, row by row.

        One that did not finish asks for a token more than it got, so that it is still there
        when it leaves.
        """
        table = self._bundle.requests
        more = pc.cast(pc.not_equal(pc.fill_null(table["status"], ""), "finished"), pa.int64())
        index = table.column_names.index("output_tokens")
        table = table.set_column(index, "output_tokens", pc.add(table["output_tokens"], more))
        manifest = self._bundle.manifest
        return requests_of(table, self._simulator.measured, manifest.hash_block_tokens)

    def _seen(self) -> dict[str, float]:
        """When the recorded engine saw each request: the first step begun after it was queued."""
        served, seen = self._served[0], {}
        for name, queued in _by_id(self._bundle, "queued_s").items():
            starts = self.records.get(served.get(name, 0), NO_STEPS).start_s
            step = bisect_left(starts, queued)
            seen[name] = starts[step] if step < len(starts) else queued
        return seen

    def _at_queue(self, demand: Workload) -> tuple[int, ...]:
        delay = self._simulator.model.frontend_ps
        return tuple(ps + delay for ps in _ps(demand.requests["arrival_s"].to_pylist()))

    def _replicas(self, demand: Workload, side: int) -> tuple[int, ...]:
        """Who served each request in the measured (0) or simulated (1) run, else in the other."""
        first, second = self._served[side], self._served[1 - side]
        return tuple(first.get(i, second.get(i, 0)) for i in _ids(demand))


def requests_of(table: pa.Table, config: SchedulerConfig, hash_tokens: int | None) -> list[Request]:
    demand = Demand(table, config, hash_tokens)
    requests = [demand.make(i) for i in range(len(demand))]
    for i, request in enumerate(requests):
        request.name = demand.name(i)
    return requests


def _terms(rungs: dict[str, Means]) -> dict[str, Means]:
    values = list(rungs.values())
    return {
        name: {m: after[m] - before[m] for m in LADDER_METRICS}
        for name, before, after in zip(list(rungs)[1:], values, values[1:], strict=False)
    }


def _means(arrival: Floats, first: Floats, finished: Floats, tokens: Floats) -> Means:
    """Mean TTFT, TPOT and end-to-end time, seconds, by ``traces.metrics``' formulas."""
    several = tokens >= 2
    tpot = ((finished - first) / np.maximum(tokens - 1, 1))[several]
    return dict(zip(LADDER_METRICS, map(_mean, (first - arrival, tpot, finished - arrival)),
                    strict=True))  # fmt: skip


def _means_of(bundle: Bundle, rows: Rows) -> Means:
    values = request_metrics(bundle)
    return {m: _mean(values[m][rows]) for m in LADDER_METRICS}


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else 0.0


def _by_id(bundle: Bundle, name: str) -> dict[str, Any]:
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


def _check(measured: Bundle, simulated: Bundle) -> str:
    """Raise TraceError for what the ladder cannot climb; returns the cluster's name."""
    for bundle in (measured, simulated):
        clusters = bundle.manifest.deployment.get("clusters") or [{}]
        if len(clusters) > 1 or clusters[0].get("role", "colocated") != "colocated":
            roles = ", ".join(str(c.get("role")) for c in clusters)
            raise TraceError(f"{bundle.path}: --ladder replays one co-located cluster, not {roles}")
    for table in ("steps", "step_requests"):
        if table not in measured:
            raise TraceError(f"{measured.path}: no {table}.parquet: --ladder needs every batch")
    if measured.requests["queued_s"].null_count if "queued_s" in (
        measured.requests.column_names) else True:  # fmt: skip
        raise TraceError(f"{measured.path}: requests without queued_s: --ladder needs it")
    name: str = measured.table("steps")["cluster"][0].as_py()
    return name
