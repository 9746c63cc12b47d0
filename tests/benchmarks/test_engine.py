"""How fast the engine is: CPU seconds on one core with full operator tables, requests written.

Each workload runs in a process of its own, so that its peak memory is its own; start-up
(imports, loading the compiled engine) is not counted, making the requests and the output is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_workloads import BENCHES, ENGINE, MOONCAKE, Bench, full_tables, shared_experts

from replay.startup import load_pyarrow
from simulator.arrivals import OpenLoop
from simulator.fleet import CompiledFleet, PlainFleet
from simulator.records import requests_table
from simulator.simulation import Simulation
from traces.bundle import write_table

pytestmark = pytest.mark.bench
GATE = 3.0
HERE = Path(__file__).resolve().parent


def simulate(bench: Bench, kind: type[CompiledFleet] | type[PlainFleet]) -> dict[str, float]:
    """Run once; CPU seconds, steps and the share of quiet ones."""
    model = full_tables()
    warm = bench.scaled(min(1.0, 20 / bench.requests))
    Simulation(demand := warm.demand(), bench.router, kind(demand, 1, model)).run(OpenLoop(demand))
    table = bench.table(bench)
    begun_s = time.process_time()
    demand = bench.demand()
    fleet = kind(demand, bench.replicas, model)
    Simulation(demand, bench.router, fleet).run(OpenLoop(demand))
    with tempfile.TemporaryDirectory() as scratch:
        write_table(Path(scratch), "requests", requests_table(demand, "main"))
    cpu_s = time.process_time() - begun_s
    steps, quiet = fleet.steps() if isinstance(fleet, CompiledFleet) else (0, 0)
    return {"cpu_s": cpu_s, "requests": len(table), "steps": steps, "quiet": quiet,
            "rss_mib": memory_mib("VmHWM"), "own_mib": memory_mib("RssAnon")}  # fmt: skip


def memory_mib(name: str) -> float:
    """Of this process, by Linux's name: its peak (``VmHWM``), or what is no file's (``RssAnon``).

    The peak that ``getrusage`` tells is that of the process it was forked from, if higher.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measured(bench: str, change: dict[str, float] | None = None) -> dict[str, float]:
    """``simulate`` a workload, with some of its fields changed, in a fresh process."""
    path = os.pathsep.join([str(HERE), str(HERE.parent / "simulator"), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, __file__, bench, json.dumps(change or {})],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, m: dict[str, float]) -> str:
    """One row of the table that is printed."""
    return (
        f"{name:<16} {m['requests']:>9,.0f} requests {m['cpu_s']:8.2f} CPU s "
        f"{m['requests'] / m['cpu_s']:>9,.0f} requests/s {m['steps'] / m['cpu_s']:>11,.0f} steps/s "
        f"{m['quiet'] / max(1, m['steps']):5.0%} quiet {m['rss_mib']:6.0f} MiB "
        f"({m['own_mib']:.0f} without files)"
    )


@pytest.mark.parametrize("name", BENCHES)
def test_workload(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "mooncake" and not MOONCAKE.is_file():
        pytest.skip("no ../shared beside the project")
    m = measured(name)
    with capsys.disabled():
        print("\n" + line(name, m))
    assert m["steps"] > 0


GROWTH = {  # what grows, from a tenth of the standard case
    "requests": ("requests", (1000, 2000, 4000, 8000)),
    "output tokens": ("output", (128, 256, 512, 1024)),
    "replicas, the same requests": ("replicas", (1, 4, 16, 64)),
}


@pytest.mark.parametrize("what", GROWTH)
def test_growth(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exponent of CPU time over what grows."""
    field, values = GROWTH[what]
    runs = []
    for value in values:
        change = {field: value} if field != "replicas" else {field: value, "rate": 10.0 / value}
        bench = {"requests": 4000, **change}
        runs.append(min((measured("1x10k", bench) for _ in range(3)), key=lambda m: m["cpu_s"]))
    exponent = np.polyfit(np.log(values), np.log([m["cpu_s"] for m in runs]), 1)[0]
    with capsys.disabled():
        print(f"\nCPU time grows with {what} to the power {exponent:.2f}")
    assert exponent <= 1.05 + 0.1  # the tenth is what this machine's noise adds to a fit


def test_a_quiet_step_costs_the_same_for_any_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """Requests that all begin at once: what 3,000 more decode steps of the batch add."""
    roomy = replace(BENCHES["1x10k"], rate=1e9, config=replace(ENGINE, num_gpu_blocks=100_000))
    cost_us = {}
    for batch in (4, 16, 64, 256):
        short, long = (
            min(
                simulate(replace(roomy, requests=batch, output=output), CompiledFleet)["cpu_s"]
                for _ in range(7)
            )
            for output in (300, 3300)
        )
        cost_us[batch] = (long - short) / 3000 * 1e6
    with capsys.disabled():
        shown = ", ".join(f"{batch}: {us:.2f} us" for batch, us in cost_us.items())
        print(f"\na quiet step by batch size: {shown}")
    assert cost_us[256] < 3 * max(cost_us[4], 0.1)


def test_lock_step_with_drawn_loads(capsys: pytest.CaptureFixture[str]) -> None:
    """DP8+EP8 against eight engines of their own: steps of a rank for each CPU second."""
    alone = replace(BENCHES["16x10k"], replicas=8, requests=8000)
    together = replace(alone, config=replace(ENGINE, lock_step_ranks=8))
    rates = []
    models = (full_tables(shared_experts(alike=alike)) for alike in (False, True))
    for bench, model in ((alone, full_tables()), *((together, model) for model in models)):
        best = 0.0
        for _ in range(3):
            demand = bench.demand()
            begun_s = time.process_time()
            fleet = CompiledFleet(demand, 8, model)
            Simulation(demand, bench.router, fleet).run(OpenLoop(demand))
            best = max(best, fleet.steps()[0] / (time.process_time() - begun_s))
        rates.append(best)
    with capsys.disabled():
        print(
            f"\nsteps/s: {rates[0]:,.0f} alone, {rates[1]:,.0f} of ranks in lock-step, "
            f"{rates[2]:,.0f} where the tokens of a prompt are alike"
        )
    assert min(rates[1:]) >= rates[0] / 5


def test_gate(capsys: pytest.CaptureFixture[str]) -> None:
    """In one process, both with the compiled step time: a ratio, so that noise cancels."""
    bench = BENCHES["1x10k"].scaled(0.1)
    fast, plain = (
        min(simulate(bench, kind)["cpu_s"] for _ in range(3))
        for kind in (CompiledFleet, PlainFleet)
    )
    with capsys.disabled():
        print(f"\nfast engine {plain / fast:.1f} times the reference ({fast:.3f} s, {plain:.3f} s)")
    assert plain / fast >= GATE


if __name__ == "__main__":
    load_pyarrow()  # as the command line does
    chosen = replace(BENCHES[sys.argv[1]], **json.loads(sys.argv[2]))
    print(json.dumps(simulate(chosen, CompiledFleet)))
