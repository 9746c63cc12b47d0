"""The compiled engine against the plain one: the same decisions, times and tables, bit for bit."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from bench_workloads import BENCHES, MOONCAKE, full_tables
from random_worlds import random_world
from scheduler_world import Case, Ours, random_case, run, sharing
from worlds import run_demand

from simulator.arrivals import OpenLoop
from simulator.demand import OUTCOMES
from simulator.fleet import CompiledFleet, PlainFleet
from simulator.scheduling.fast import FastScheduler
from simulator.scheduling.reference import Scheduler
from simulator.simulation import Simulation
from simulator.step_time.base import shape_of

WORLDS = 1000
CASES = 200
AT_LEAST = WORLDS // 10
LONG = "1024x1M"  # of which a tenth takes the reference two minutes


def test_same_tables_in_random_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    steps = quiet = 0
    for seed in range(WORLDS):
        world = random_world(seed)
        fleets: list[CompiledFleet] = []

        def make(
            *arguments: object, kept: list[CompiledFleet] = fleets, **options: object
        ) -> CompiledFleet:
            kept.append(CompiledFleet(*arguments, **options))  # type: ignore[arg-type]
            return kept[0]

        plain = run_demand(world.demand(), PlainFleet, **world.how)
        compiled = run_demand(world.demand(), make, **world.how)
        for name, table in plain.items():
            assert table.equals(compiled[name]), f"{name} of {world}"
        requests = plain["requests"]
        seen.update(
            {
                "preemption": sum(requests["preemptions"].to_pylist()) > 0,
                "prefix hit": max(requests["cached_tokens"].to_pylist()) > 0,
                "several replicas": max(requests["replica"].to_pylist()) > 0,
                "closed loop": world.how["concurrency"] is not None,
                "equal arrivals": len(set(requests["arrival_s"].to_pylist())) < len(requests),
                "pipeline": len(world.config.stage_layers) > 1,
                "lock-step": world.config.lock_step_ranks > 1,
                "dummy steps": "dummy" in plain["steps"].column_names
                and any(plain["steps"]["dummy"].to_pylist()),
                "priority": world.config.scheduling_policy == "priority",
                "no chunked prefill": not world.config.enable_chunked_prefill,
                **{f"router {name}": world.how["router"] == name for name in [world.how["router"]]},
            }
        )
        taken, still = fleets[0].steps()
        steps, quiet = steps + taken, quiet + still
    with capsys.disabled():
        print(f"\n{WORLDS} worlds, {steps} steps equal, {quiet / steps:.0%} of them quiet; {seen}")
    assert {what: n for what, n in seen.items() if n < AT_LEAST} == {}


class WithShapes(Ours):
    """Keeps the shape of each batch beside it."""

    def schedule(self) -> tuple[object, tuple[object, ...], bool]:
        batch, record, ran = super().schedule()
        shape = shape_of(batch)
        if isinstance(self.scheduler, FastScheduler) and self.config.windows == (None,):
            assert self.scheduler.shape == shape
        return batch, record, ran


@pytest.mark.parametrize("asynchronous", [False, True])
def test_same_decisions_and_shapes_step_by_step(asynchronous: bool) -> None:
    quiet = 0
    for seed in range(CASES):
        case: Case = random_case(seed, asynchronous=asynchronous)
        plain = WithShapes(case.config, Scheduler)
        fast = WithShapes(case.config, FastScheduler, sharing(case), check=seed % 2 == 0)
        wanted, got = run(plain, case), run(fast, case)
        for step, (ours, theirs) in enumerate(zip(got.steps, wanted.steps, strict=True)):
            assert ours == theirs, f"step {step} of {case.seed}: {case.config}"
        assert isinstance(fast.scheduler, FastScheduler)
        quiet += fast.scheduler.quiet_steps
    assert quiet > CASES


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in BENCHES if n != LONG])
def test_same_outcome_of_the_benchmarks_at_a_tenth(name: str) -> None:
    if name == "mooncake" and not MOONCAKE.is_file():
        pytest.skip("no ../shared beside the project")
    assert_same_outcome(name)


@pytest.mark.long
def test_same_outcome_of_a_hundred_replicas() -> None:
    assert_same_outcome(LONG)


def assert_same_outcome(name: str) -> None:
    bench = BENCHES[name].scaled(0.1)
    demands = bench.demand(), bench.demand()
    for demand, kind in zip(demands, (PlainFleet, CompiledFleet), strict=True):
        fleet = kind(demand, bench.replicas, full_tables())
        Simulation(demand, bench.router, fleet).run(OpenLoop(demand))
        fleet.check()
    a, b = demands
    for name in OUTCOMES:
        np.testing.assert_array_equal(a.records[name], b.records[name], err_msg=name)
