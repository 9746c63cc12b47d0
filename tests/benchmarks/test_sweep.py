"""``frontier whatif``: a thousand deployments of one trace."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result

from traces.samples import sample_runs

pytestmark = pytest.mark.bench
HOME = Path(__file__).resolve().parents[2]
REQUESTS, POINTS = 2000, 1000
WALL_S, PROCESSES = 240.0, 2
AXES = {
    "replicas": [1, 2, 3, 4, 5, 6, 7, 8, 12, 16],
    "engine.max_num_seqs": [8, 16, 32, 64, 128],
    "engine.max_num_batched_tokens": [256, 512, 1024, 2048],
    "rate_scale": [0.5, 1.0, 2.0, 4.0, 8.0],
}
WORKLOAD = ("--requests", REQUESTS, "--rate", 8, "--prompt", "lognormal:240,0.6,64,768")
WORKLOAD += ("--output", "lognormal:56,0.55,16,160", "--seed", 5)


def test_a_thousand_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], frontier: Callable[..., Result]
) -> None:
    runs, profile, trace = sample_runs("moe-low"), tmp_path / "profile", tmp_path / "trace"
    assert frontier("fit", *runs, "--out", profile).exit_code == 0
    assert frontier("traces", "synth", *WORKLOAD, "--out", trace).exit_code == 0
    deployment = yaml.safe_load((runs[0] / "bundle.yaml").read_text())["deployment"]
    deployment["model"] = str(runs[0] / "model.json")
    sweep, out = tmp_path / "sweep.yaml", tmp_path / "out"
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(deployment))
    slos = {"ttft.p99": 1.0, "tpot.p99": 0.1}
    content = {"base": "base.yaml", "axes": AXES, "slos": slos, "objective": "goodput_per_gpu"}
    sweep.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "replay.cli", "whatif", trace, "--sweep", sweep]
    command += ["--operators", profile, "--jobs", PROCESSES, "--out", out]
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([str(c) for c in command], check=True, capture_output=True, cwd=HOME)
    wall_s = time.perf_counter() - begun_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = sum(after[:2]) - sum(before[:2])
    rows = pq.read_table(out / "results.parquet").to_pylist()
    done = [r for r in rows if r["status"] != "infeasible"]
    with capsys.disabled():
        print(
            f"\n{len(rows):,} points ({len(done):,} simulated) of {REQUESTS:,} requests on "
            f"{PROCESSES} processes: {wall_s:.0f} s, {cpu_s:.0f} CPU s"
        )
    assert len(done) == len(rows) == POINTS, {r["reason"] for r in rows}
    assert wall_s < WALL_S
