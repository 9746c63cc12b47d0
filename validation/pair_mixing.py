"""Runs of a prefill/decode pair that are partly measured and partly simulated.

The simulator's own two stages run each of them, on the plain engines. What is measured stands
in for what is predicted: the times of steps, when each request is seen by either side, how
long its transfer took.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulator.arrivals import OpenLoop
from simulator.clock import PS_PER_S
from simulator.demand import Demand
from simulator.disaggregation.connection import Connection
from simulator.disaggregation.setup import Side, demands
from simulator.disaggregation.tables import requests_table
from simulator.fleet import PlainFleet
from simulator.scheduling.request import Request
from simulator.stage import Stage
from traces.bundle import Bundle, Manifest
from traces.metrics import Floats, column, request_metrics
from traces.workload import Workload, bundle_workload
from validation.mixing import LADDER_METRICS, Means, by_id, mean_of
from validation.pairing import pair
from validation.predicting import Predictor
from validation.recorded_handover import (
    FrontendOnly,
    Handover,
    MixedSteps,
    RecordedHandover,
    RecordedRouter,
)
from validation.recorded_steps import NO_STEPS, PARTS, Record, read_record
from validation.step_errors import accumulated_error

ROLES = ("prefill", "decode")
QUEUED = {"prefill": "queued_s", "decode": "decode_queued_s"}
HOMES = {"prefill": "replica", "decode": "decode_replica"}


@dataclass(frozen=True, slots=True)
class PairSimulator:
    """What the simulator made of two deployments of a pair, sides by role.

    ``connection`` and ``proxy_ps`` are the simulated deployment's, ``profile`` is the hash of
    the operator profile.
    """

    measured: Mapping[str, Side]
    simulated: Mapping[str, Side]
    connection: Connection
    proxy_ps: int
    profile: str | None = None


@dataclass(frozen=True, slots=True)
class PairMix:
    """One rung: which parts are the simulated ones."""

    arrivals: bool = False
    routing: bool = False
    handover: bool = False
    blocks: bool = False
    settings: bool = False
    predicted: frozenset[str] = frozenset()


class PairMixer:
    """The two runs, ready to be mixed."""

    def __init__(self, measured: Bundle, simulated: Bundle, simulator: PairSimulator) -> None:
        self.pairing = pair(measured, simulated)
        self._bundle, self._simulator = measured, simulator
        self._asked, self._given = bundle_workload(measured), bundle_workload(simulated)
        self.records: dict[str, dict[int, Record]] = {}
        for role in ROLES:
            side = simulator.measured[role]
            steps = measured.table("steps")
            here = steps.filter(pc.equal(steps["cluster"], side.name))
            depth = side.config.max_concurrent_batches
            ready_s = column(measured.requests, QUEUED[role])
            if role == "decode":  # its KV has come
                ready_s = np.fmax(ready_s, column(measured.requests, "transfer_end_s"))
            self.records[role] = {
                r: read_record(measured, side.name, r, depth, ready_s)
                for r in sorted(pc.unique(here["replica"]).to_pylist())
            }
        self._seen = {role: by_id(measured, QUEUED[role]) for role in ROLES}
        self._homes = {role: by_id(measured, HOMES[role]) for role in ROLES}

    def mixes(self) -> Iterator[tuple[str, PairMix]]:
        """The rungs between the two runs, by the name of the term that leads to each."""
        mix = PairMix()
        yield "scheduling", mix
        mix = replace(mix, arrivals=True)
        yield "arrivals", mix
        mix = replace(mix, handover=True)
        yield "handover", mix
        mix = replace(mix, routing=True)
        if any(len(records) > 1 for records in self.records.values()):
            yield "routing", mix
        mix = replace(mix, blocks=True)
        yield "kv_capacity", mix
        mix = replace(mix, settings=True)
        yield "settings", mix
        mix = replace(mix, predicted=frozenset({"host", "gap"}))
        yield "host_overhead", mix
        yield "operators", replace(mix, predicted=frozenset(PARTS))

    def run(self, mix: PairMix) -> Means:
        """Run one rung: means over the compared requests."""
        asked, arrival_s = self._requests(mix)
        sides = [self._side(role, mix) for role in ROLES]
        first, last = demands(asked.requests, sides[0], sides[1], asked.hash_block_tokens)
        recorded = {} if mix.handover else self._handovers(asked, looks=not mix.arrivals)
        stages: list[Stage] = []
        for role, side, demand in zip(ROLES, sides, (first, last), strict=True):
            fleet = self._fleet(role, side, demand, mix)
            stage = Stage(demand, side.router, fleet)
            if not mix.routing and side.schedulers > 1:
                names = demand.table["request_id"].to_pylist()
                stage.router = RecordedRouter([self._homes[role].get(n, 0) for n in names])
            stages.append(stage)
        simulator = self._simulator
        simulation = RecordedHandover(
            stages[0], stages[1], simulator.connection, simulator.proxy_ps, recorded
        )
        simulation.run(OpenLoop(first))
        table = requests_table(simulation, sides[0].name)
        arrival = pa.array([arrival_s[i] for i in table["request_id"].to_pylist()])
        table = table.set_column(table.column_names.index("arrival_s"), "arrival_s", arrival)
        rows = pc.index_in(self.pairing.ids, value_set=table["request_id"].combine_chunks())
        metrics = request_metrics(Bundle(self._bundle.path, Manifest("simulated"),
                                         {"requests": table.take(rows)}))  # fmt: skip
        return {m: mean_of(metrics[m]) for m in LADDER_METRICS}

    def predictors(self) -> list[tuple[Record, Predictor]]:
        """Each replica's record, and what predicts its steps."""
        return [
            (record, Predictor(self._simulator.simulated[role].model, replica))
            for role, records in self.records.items()
            for replica, record in records.items()
        ]

    def direct_effect(self) -> Means:
        """What predicted step times add to each request, its batches as recorded; seconds."""
        table = self._bundle.requests.take(pa.array(self.pairing.measured))
        names = ("queued_s", "prefill_finished_s", "decode_queued_s", "first_token_s", "finished_s")
        stamps = {name: column(table, name) for name in names}
        late = {name: np.zeros(len(table)) for name in names}
        for role, of in (("prefill", names[:2]), ("decode", names[2:])):
            home = column(table, HOMES[role])
            for replica, record in self.records[role].items():
                mine = home == replica
                model = self._simulator.simulated[role].model
                error = accumulated_error(record, Predictor(model, replica))
                for name in of:
                    late[name][mine] = np.interp(stamps[name][mine], *error)
        before = late["prefill_finished_s"] - late["queued_s"] - late["decode_queued_s"]
        tokens = column(table, "output_tokens")
        decoding = late["finished_s"] - late["first_token_s"]
        several = tokens >= 2
        values: tuple[Floats, ...] = (
            before + late["first_token_s"],
            (decoding / np.maximum(tokens - 1, 1))[several],
            before + late["finished_s"],
        )
        return dict(zip(LADDER_METRICS, map(mean_of, values), strict=True))

    def requests_of_sides(self) -> tuple[list[Request], list[Request]]:
        """The measured bundle's requests, row by row, as either side has them."""
        sides = self._simulator.measured
        hashes = self._bundle.manifest.hash_block_tokens
        asked = demands(self._bundle.requests, sides["prefill"], sides["decode"], hashes)
        first, last = ([demand.make(i) for i in range(len(demand))] for demand in asked)
        return first, last

    def _requests(self, mix: PairMix) -> tuple[Workload, dict[str, float]]:
        """Requests by when they reach prefill's queue, and their arrivals at the front end."""
        work = self._given if mix.arrivals else self._asked
        table = work.requests
        arrival_s = by_id_of(table, "arrival_s")
        if mix.arrivals:
            return work, arrival_s
        seen = {  # at the first step begun after it was queued
            name: _first(self._record("prefill", name).start_s, queued)
            for name, queued in self._seen["prefill"].items()
        }
        table = table.filter(pc.is_in(table["request_id"], value_set=pa.array([*seen])))
        at = pa.array([seen[i] for i in table["request_id"].to_pylist()])
        table = table.set_column(table.column_names.index("arrival_s"), "arrival_s", at)
        queued = [self._seen["prefill"][i] for i in table["request_id"].to_pylist()]
        order = np.lexsort((queued, at.to_numpy()))  # those seen at once in the queue's order
        return replace(work, requests=table.take(pa.array(order))), arrival_s

    def _side(self, role: str, mix: PairMix) -> Side:
        real, ours = self._simulator.measured[role], self._simulator.simulated[role]
        config = real.config
        if mix.settings:
            config = ours.config
        elif mix.blocks:
            config = replace(config, num_gpu_blocks=ours.config.num_gpu_blocks)
        return replace(ours if mix.routing else real, config=config)

    def _fleet(self, role: str, side: Side, demand: Demand, mix: PairMix) -> PlainFleet:
        model, records = self._simulator.simulated[role].model, self.records[role]
        predicted = mix.handover if role == "decode" else mix.arrivals
        clocks = [
            MixedSteps(records.get(i, NO_STEPS), Predictor(model, i), mix.predicted)
            for i in range(side.schedulers)
        ]
        return PlainFleet(
            demand, side.schedulers, FrontendOnly(model.frontend_ps if predicted else 0),
            loads_late=side.loads_late, models=clocks,
        )  # fmt: skip

    def _handovers(self, asked: Workload, *, looks: bool) -> dict[int, Handover]:
        """By row: what lay between prefill's answer and decode, of those it was recorded of.

        ``looks``: as the engines saw it. Prefill answers when a step ends, and decode goes on
        with a request whose KV has come at the first step begun after that.
        """
        names = ("prefill_finished_s", "transfer_start_s", "transfer_end_s")
        stamps = [by_id(self._bundle, name) for name in names]
        found = {}
        for i, name in enumerate(asked.requests["request_id"].to_pylist()):
            answered, start, end, queued = (s.get(name) for s in (*stamps, self._seen["decode"]))
            if answered is None or start is None or end is None or queued is None:
                continue
            moved, landed = round((end - start) * PS_PER_S), None
            if looks:
                answered = _first(self._record("prefill", name).end_s, answered)
                landed = _ps(_first(self._record("decode", name).start_s, end)) - _ps(answered)
            found[i] = Handover(_ps(queued) - _ps(answered), moved, landed)
        return found

    def _record(self, role: str, name: str) -> Record:
        """Of the replica that served a request."""
        return self.records[role].get(self._homes[role].get(name, 0), NO_STEPS)


def _first(times_s: list[float], after_s: float) -> float:
    """The first of ascending times that is not before ``after_s``, which it is without one."""
    n = bisect_left(times_s, after_s)
    return times_s[n] if n < len(times_s) else after_s


def _ps(seconds: float) -> int:
    return round(seconds * PS_PER_S)


def by_id_of(table: pa.Table, name: str) -> dict[str, float]:
    """A column of a workload's requests by id."""
    return dict(zip(table["request_id"].to_pylist(), table[name].to_pylist(), strict=True))
