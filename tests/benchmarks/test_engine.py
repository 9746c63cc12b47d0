"""How fast the engine is: CPU seconds on one core with full operator tables, requests written.

Each workload runs in a process of its own, so that its peak memory is its own; start-up
(imports, loading the compiled engine) is not counted, making the requests and the output is.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from bench_workloads import BENCHES, MOONCAKE, Bench, full_tables

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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": cpu_s, "requests": len(table), "steps": steps, "quiet": quiet, "rss_mib": peak}


def measured(bench: str, factor: float = 1.0) -> dict[str, float]:
    """``simulate`` in a fresh process."""
    path = os.pathsep.join([str(HERE), str(HERE.parent / "simulator"), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, __file__, bench, str(factor)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(name: str, m: dict[str, float]) -> str:
    """One row of the table that is printed."""
    return (
        f"{name:<16} {m['requests']:>9,.0f} requests {m['cpu_s']:8.2f} CPU s "
        f"{m['requests'] / m['cpu_s']:>9,.0f} requests/s {m['steps'] / m['cpu_s']:>11,.0f} steps/s "
        f"{m['quiet'] / max(1, m['steps']):5.0%} quiet {m['rss_mib']:6.0f} MiB"
    )


@pytest.mark.parametrize("name", BENCHES)
def test_workload(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "mooncake" and not MOONCAKE.is_file():
        pytest.skip("no ../shared beside the project")
    m = measured(name)
    with capsys.disabled():
        print("\n" + line(name, m))
    assert m["steps"] > 0


def test_growth(capsys: pytest.CaptureFixture[str]) -> None:
    """Exponent of CPU time over the number of requests, on one replica."""
    factors = (1.0, 2.0, 4.0, 8.0)
    seconds = [min(measured("1x10k at once", f)["cpu_s"] for _ in range(3)) for f in factors]
    exponent = np.polyfit(np.log(factors), np.log(seconds), 1)[0]
    with capsys.disabled():
        print(f"\nCPU time grows with requests to the power {exponent:.2f}")


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
    name, factor = sys.argv[1], float(sys.argv[2])
    bench = BENCHES[name.removesuffix(" at once")]
    if name.endswith(" at once"):  # more requests on as many replicas
        from dataclasses import replace

        bench = replace(bench, requests=round(bench.requests * factor))
    print(json.dumps(simulate(bench, CompiledFleet)))
