"""Runs of a small deployment through the simulator, one of them taken for the measured one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from replay.simulate import run_replay
from simulator.step_time.fitted import StepProfile, save_profile
from traces.bundle import Manifest, write_bundle

MODEL = "traces/models/qwen3-14b.json"
ENGINE = {
    "max_model_len": 1024, "max_num_batched_tokens": 256, "max_num_seqs": 16, "block_size": 16,
    "num_gpu_blocks": 2000, "async_scheduling": False,
}  # fmt: skip
RECORD = "steps,step_requests"
LINK = {"from": "p", "to": "d", "bandwidth_gb_s": 2.0, "setup_us": 500, "latency_us": 50}


def workload(path: Path, *, requests: int = 80, rate_per_s: float = 6.0, output: int = 60) -> Path:
    """Poisson arrivals; prompts of 20 to 300 tokens, outputs of 2 to ``output``."""
    rng = np.random.default_rng(3)
    table = {
        "request_id": [f"r{i:03d}" for i in range(requests)],
        "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, requests)),
        "prompt_tokens": rng.integers(20, 300, requests),
        "output_tokens": rng.integers(2, output, requests),
    }
    write_bundle(path, Manifest("simulated", "client"), {"requests": pa.table(table)})
    return path


def profile(
    path: Path, *, slower: float = 1.0, host: float = 1.0, frontend_s: float = 0.001
) -> Path:
    """Steps of 8 ms and 0.2 ms a token, 1 ms of host and 0.5 ms between steps."""
    save_profile(
        StepProfile(
            model={}, engine="vllm", engine_version="0.32.0", hardware="cpu", layout={},
            forward={"step": 8e-3 * slower, "tokens": 2e-4 * slower},
            host={"step": 1e-3 * host}, gap={"step": 5e-4 * host}, frontend_s=frontend_s,
            ranges={n: [0, 10**9] for n in ("tokens", "rows", "decode_context", "prefill_pairs")},
            fitted_on=[],
        ),
        path,
    )  # fmt: skip
    return path


def deployment(
    path: Path, *, model: str = MODEL, replicas: int = 1, router: str = "round_robin",
    **engine: Any,
) -> Path:  # fmt: skip
    """A deployment file; ``engine`` overrides ``ENGINE``."""
    cluster = {
        "name": "main", "role": "colocated", "replicas": replicas, "hardware": "cpu",
        "engine": {**ENGINE, **engine},
    }  # fmt: skip
    content = {"model": model, "clusters": [cluster], "routing": {"policy": router}}
    path.write_text(yaml.safe_dump(content))
    return path


def run(
    home: Path,
    name: str,
    work: Path,
    operators: Path,
    layout: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Simulate ``work``; returns the bundle."""
    file = deployment(home / f"{name}.yaml", **(layout or {}))
    run_replay(work, file, home / name, operators=operators, record=RECORD, **options)
    return home / name


def run_pair(
    home: Path,
    name: str,
    work: Path,
    operators: Path,
    *,
    engine: dict[str, Any] | None = None,
    link: dict[str, Any] | None = None,
    proxy_us: float = 300,
    replicas: tuple[int, int] = (1, 1),
    router: str = "round_robin",
    prefill: dict[str, Any] | None = None,
    decode: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Simulate a prefill/decode pair; returns the bundle."""
    sides = (("p", "prefill", prefill or {}), ("d", "decode", decode or {}))
    content = {
        "model": MODEL,
        "clusters": [
            {"name": side, "role": role, "replicas": n, "hardware": "cpu",
             "engine": {**ENGINE, **(engine or {}), **more}}
            for (side, role, more), n in zip(sides, replicas, strict=True)
        ],
        "links": [{**LINK, **(link or {})}],
        "routing": {"policy": router, "proxy_us": proxy_us},
    }  # fmt: skip
    file = home / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    run_replay(work, file, home / name, operators=operators, record=RECORD, **options)
    return home / name
