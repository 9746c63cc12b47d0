"""``frontier validate`` on a million requests: CPU seconds and peak memory of a fresh process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from traces.bundle import Manifest, write_bundle

pytestmark = pytest.mark.bench
REQUESTS, REPLICAS, BLOCKS = 1_000_000, 64, 32
STEPS = 2 * REQUESTS  # of all replicas
CPU_S, MEMORY_MIB = 30.0, 2048.0
PAGE_MIB = 6.0  # of the report, most of it plotly


def bundle(path: Path, kind: str, seed: int, slower: float) -> Path:
    """A bundle whose requests arrive alike whatever the seed; ``BLOCKS`` hashes each."""
    world, own = np.random.default_rng(1), np.random.default_rng(seed)
    arrival = np.cumsum(world.exponential(1e-3, REQUESTS))
    output = world.integers(1, 512, REQUESTS)
    hashes = world.integers(0, 2**62, REQUESTS * BLOCKS)
    queue = own.gamma(0.5, 0.02, REQUESTS)
    first = arrival + queue + slower * own.gamma(4, 0.02, REQUESTS)
    offsets = np.arange(0, len(hashes) + 1, BLOCKS, dtype=np.int32)
    requests = {
        "request_id": [f"request-{i:09d}" for i in range(REQUESTS)],
        "arrival_s": arrival,
        "prompt_tokens": world.integers(16, 4096, REQUESTS),
        "output_tokens": output,
        "block_hashes": pa.ListArray.from_arrays(offsets, pa.array(hashes)),
        "cluster": pa.array(["main"]).take(pa.array(np.zeros(REQUESTS, np.int64))),
        "replica": world.integers(0, REPLICAS, REQUESTS),
        "queued_s": arrival,
        "scheduled_s": arrival + queue,
        "first_token_s": first,
        "finished_s": first + (output - 1) * slower * own.gamma(9, 0.002, REQUESTS),
        "status": pa.array(["finished"]).take(pa.array(np.zeros(REQUESTS, np.int64))),
    }
    count = STEPS // REPLICAS
    start = np.sort(own.uniform(0, arrival[-1], (REPLICAS, count)), axis=1).ravel()
    steps = {
        "cluster": pa.array(["main"]).take(pa.array(np.zeros(STEPS, np.int64))),
        "replica": np.repeat(np.arange(REPLICAS), count),
        "step": np.tile(np.arange(count), REPLICAS),
        "start_s": start,
        "end_s": start,
        "prefill_tokens": own.integers(0, 512, STEPS),
        "decode_tokens": own.integers(0, 64, STEPS),
        "running": own.integers(1, 64, STEPS),
        "waiting": own.integers(0, 8, STEPS),
        "free_blocks": own.integers(0, 4000, STEPS),
    }
    steps["end_s"] = np.minimum(start + 1e-3, np.append(start[1:], np.inf))
    steps["end_s"] = np.where(steps["end_s"] < start, start, steps["end_s"])
    deployment = {"clusters": [{"name": "main", "engine": {"num_gpu_blocks": 4001}}]}
    manifest = Manifest(kind, hash_block_tokens=16, deployment=deployment)
    tables = {"requests": pa.table(requests), "steps": pa.table(steps)}
    write_bundle(path, manifest, tables)
    return path


def test_a_million_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = [
        bundle(tmp_path / kind, kind, seed, slower)
        for kind, seed, slower in (("measured", 2, 1.0), ("simulated", 3, 1.05))
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "replay.cli", "validate", *map(str, sides),
         "--out", str(tmp_path / "out")],
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True, capture_output=True,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory_mib = after.ru_maxrss / 1024
    page_mib = (tmp_path / "out" / "report.html").stat().st_size / 2**20
    with capsys.disabled():
        print(
            f"\nvalidate {REQUESTS:,} requests, {STEPS:,} steps: {cpu_s:.1f} CPU s, "
            f"{memory_mib:,.0f} MiB, report.html {page_mib:.1f} MiB"
        )
    assert cpu_s < CPU_S
    assert memory_mib < MEMORY_MIB
    assert page_mib < PAGE_MIB
