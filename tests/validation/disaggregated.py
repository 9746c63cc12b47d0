"""Bundles of disaggregated deployments by hand: prefill and decode, attention and experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle

STAGES = ("attention", "a2f", "ffn", "f2a")


def pd_bundle(path: Path, *, slower: dict[str, float] | None = None, n: int = 60) -> Bundle:
    """Requests through prefill, transfer and decode; ``slower`` scales parts of the chain.

    Each part is drawn once, so that bundles of one ``n`` differ by ``slower`` alone.
    """
    rng = np.random.default_rng(4)
    scale = {**dict.fromkeys(("queue", "prefill", "transfer_wait", "transfer", "decode_queue",
                              "decode"), 1.0), **(slower or {})}  # fmt: skip
    parts = {name: factor * rng.gamma(4, 0.01, n) for name, factor in scale.items()}
    arrival = np.cumsum(rng.exponential(0.2, n))
    ends = dict(zip(parts, arrival + np.cumsum(list(parts.values()), axis=0), strict=True))
    requests = {
        "request_id": [f"r{i}" for i in range(n)],
        "arrival_s": arrival,
        "prompt_tokens": rng.integers(100, 900, n),
        "output_tokens": rng.integers(2, 40, n),
        "cluster": ["prefill"] * n,
        "replica": [0] * n,
        "queued_s": arrival,
        "scheduled_s": ends["queue"],
        "prefill_finished_s": ends["prefill"],
        "transfer_start_s": ends["transfer_wait"],
        "transfer_end_s": ends["transfer"],
        "decode_replica": [0] * n,
        "decode_queued_s": ends["prefill"],
        "decode_scheduled_s": ends["decode_queue"],
        "first_token_s": ends["decode_queue"] + 0.25 * parts["decode"],
        "finished_s": ends["decode"],
        "status": ["finished"] * n,
    }
    steps = pa.concat_tables(
        [
            _steps("prefill", ends["queue"], parts["prefill"], prefill_tokens=100, running=1),
            _steps("decode", ends["decode_queue"], parts["decode"], decode_tokens=4, running=4),
        ]
    )
    transfers = {
        "source": ["prefill/0"] * n, "destination": ["decode/0"] * n,
        "request_id": requests["request_id"], "bytes": [1 << 20] * n,
        "start_s": ends["transfer_wait"], "end_s": ends["transfer"],
    }  # fmt: skip
    clusters = [
        {"name": name, "role": name, "engine": {"num_gpu_blocks": blocks}}
        for name, blocks in (("prefill", 101), ("decode", 51))
    ]
    tables = {"requests": requests, "steps": steps, "transfers": transfers}
    return _written(path, clusters, tables)


def af_bundle(path: Path, *, slower: dict[str, float] | None = None, n: int = 40) -> Bundle:
    """Decode steps of two layers and two micro-batches; ``slower`` scales stages."""
    rng = np.random.default_rng(5)
    arrival = np.cumsum(rng.exponential(0.2, n))
    spans: list[tuple[Any, ...]] = []
    ends = []
    for step, start in enumerate(arrival):
        now = float(start)
        for layer in range(2):
            for micro_batch in range(2):
                for stage in STAGES:
                    took = (slower or {}).get(stage, 1.0) * float(rng.gamma(9, 1e-4))
                    cluster = "ffn" if stage in ("ffn", "f2a") else "attention"
                    spans.append((cluster, 0, 0, step, layer, micro_batch, stage, now, now + took))
                    now += took
        ends.append(now)
    end = np.array(ends)
    requests = {
        "request_id": [f"r{i}" for i in range(n)], "arrival_s": arrival,
        "prompt_tokens": [16] * n, "output_tokens": [1] * n, "scheduled_s": arrival,
        "first_token_s": end, "finished_s": end, "status": ["finished"] * n,
    }  # fmt: skip
    names = ("cluster", "replica", "rank", "step", "layer", "micro_batch", "stage", "start_s",
             "end_s")  # fmt: skip
    steps = _steps("attention", arrival, end - arrival, decode_tokens=8, running=8)
    table = dict(zip(names, map(list, zip(*spans, strict=True)), strict=True))
    clusters = [{"name": "attention", "role": "attention"}, {"name": "ffn", "role": "ffn"}]
    return _written(path, clusters, {"requests": requests, "steps": steps, "spans": table})


def _steps(cluster: str, start: Any, took: Any, **columns: int) -> pa.Table:
    order = np.argsort(start)
    start, end = start[order], (start + took)[order]
    n = len(start)
    filled = {"prefill_tokens": 0, "decode_tokens": 0, "waiting": 0, "free_blocks": 40, **columns}
    return pa.table(
        {
            "cluster": [cluster] * n, "replica": [0] * n, "step": range(n), "start_s": start,
            "end_s": np.maximum.accumulate(end), **{k: [v] * n for k, v in filled.items()},
        }
    )  # fmt: skip


def _written(path: Path, clusters: list[dict[str, Any]], tables: dict[str, Any]) -> Bundle:
    manifest = Manifest("measured", deployment={"clusters": clusters})
    made = {n: t if isinstance(t, pa.Table) else pa.table(t) for n, t in tables.items()}
    write_bundle(path, manifest, made)
    return read_bundle(path)
