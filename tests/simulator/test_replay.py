"""``frontier replay`` as a process: start-up, determinism, progress, Ctrl-C."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from replay import progress, simulate
from replay.simulate import run_replay
from simulator.deployment import Engine
from simulator.engine import build
from simulator.engine.loader import Code
from simulator.step_time.fitted import LAYOUT, StepProfile, save_profile
from traces.bundle import read_bundle

START_S = 0.3  # of frontier -h
FIXED_S = 1.0  # of a replay, machine code at hand
DEPLOYMENT = """
model: traces/models/llama-2-7b.json
engine_version: 0.32.0
clusters:
  - name: main
    replicas: 3
    hardware: a100_sxm_80gb
    engine:
      {max_num_batched_tokens: 512, max_num_seqs: 32, num_gpu_blocks: 300, max_model_len: 2048}
routing: {policy: vllm_dp}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a deployment, an operator profile and a workload of 300 requests."""
    engine = Engine()
    profile = StepProfile(
        model={"layers": 32, "hidden": 4096},
        engine="vllm",
        engine_version="0.32.0",
        hardware="a100_sxm_80gb",
        layout={name: getattr(engine, name) for name in LAYOUT},
        forward={"step": 8e-3, "tokens": 5e-5, "decode_context": 3e-7},
        host={"step": 1e-4},
        gap={"step": 5e-5},
        frontend_s=1e-3,
        ranges={n: [0, 10**6] for n in ("tokens", "rows", "decode_context", "prefill_pairs")},
        fitted_on=[],
    )
    save_profile(profile, tmp_path / "profile")
    (tmp_path / "deployment.yaml").write_text(DEPLOYMENT)
    rng = np.random.default_rng(0)
    lines = ["arrived_at,num_prefill_tokens,num_decode_tokens"]
    for at in np.cumsum(rng.exponential(0.02, 300)):
        lines.append(f"{at:.3f},{rng.integers(10, 900)},{rng.integers(1, 120)}")
    (tmp_path / "workload.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def arguments(world: Path, out: str, *more: str) -> list[str]:
    named = {"--deployment": "deployment.yaml", "--operators": "profile", "--out": out}
    options = [part for name, file in named.items() for part in (name, str(world / file))]
    return ["replay", str(world / "workload.csv"), *options, *more]


def cpu_seconds(command: list[str], repeats: int = 3) -> float:
    """Least CPU time of a process over some runs."""
    times = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


def test_start_up(world: Path) -> None:
    cli = [sys.executable, "-m", "replay.cli"]
    assert cpu_seconds([*cli, "-h"]) < START_S
    assert cpu_seconds([*cli, *arguments(world, "out")]) < FIXED_S


def test_a_replay_imports_nothing_heavy(world: Path) -> None:
    code = (
        "import sys; from replay.cli import main; "
        f"main({arguments(world, 'out')!r}, standalone_mode=False); "
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "pyarrow" in loaded
    heavy = {"pandas", "scipy", "sklearn", "numba", "rich", "plotly"}
    if isinstance(build._code(), Code):  # else LLVM has to load what it made
        heavy.add("llvmlite")
    assert loaded & heavy == set()


def test_same_bytes_whatever_the_hash_seed(world: Path) -> None:
    contents = []
    for seed in ("1", "2"):
        out = f"out{seed}"
        command = arguments(world, out, "--record", "steps,step_requests")
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-m", "replay.cli", *command], check=True, env=environment)
        contents.append({p.name: p.read_bytes() for p in (world / out).iterdir()})
    assert contents[0] == contents[1]
    assert {"bundle.yaml", "requests.parquet", "steps.parquet", "step_requests.parquet"} <= {
        *contents[0]
    }


def test_control_c_leaves_a_readable_bundle(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def interrupting(total: int, what: str) -> Iterator[Callable[[int], None]]:
        yield lambda done: signal.raise_signal(signal.SIGINT) if done > total // 3 else None

    monkeypatch.setattr(simulate, "progress_of", interrupting)
    monkeypatch.setattr("simulator.simulation.PROGRESS_EVERY", 1)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_replay(
            world / "workload.csv",
            world / "deployment.yaml",
            world / "out",
            operators=world / "profile",
            record="steps,step_requests",
        )
    assert signal.getsignal(signal.SIGINT) is before
    bundle = read_bundle(world / "out")
    status = bundle.requests["status"].to_pylist()
    assert 100 < status.count("finished") < 300
    assert status.count("finished") + status.count("unfinished") == 300
    assert bundle.manifest.notes["interrupted"].startswith("stopped after 1")
    emitted = sum(bundle.table("step_requests")["emitted_tokens"].to_pylist())
    assert emitted == sum(bundle.requests["output_tokens"].to_pylist())


def test_progress_says_rate_and_time_left_after_two_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress, "monotonic", lambda: now)
    with progress.progress_of(4000, "simulating") as advance:
        advance(1000)
        assert capsys.readouterr().err == ""
        now += 4.0
        advance(2000)
        now += 1.0
        advance(2500)
        now += 11.0
        advance(3200)
    assert capsys.readouterr().err.splitlines() == [
        "simulating: 2,000 of 4,000, 500/s, 4 s left",
        "simulating: 3,200 of 4,000, 200/s, 4 s left",
    ]
