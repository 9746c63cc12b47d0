"""Bundles of a toy engine: a batch loop with a step time that a seed makes noisy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle

BLOCKS = 400
BATCH = 8


def fake_bundle(
    path: Path,
    *,
    requests: int = 120,
    seed: int = 0,
    slower: float = 1.0,
    kind: str = "measured",
    warmups: int = 0,
    aborted: int = 0,
    prefix: str = "r",
    blocks: int = BLOCKS,
    **manifest: Any,
) -> Bundle:
    """Write a bundle: equal arrivals and lengths whatever the ``seed``, which is the noise's.

    ``slower`` scales every step; the last ``aborted`` requests do not finish.
    """
    world, noise = np.random.default_rng(1), np.random.default_rng(seed)
    n = requests + warmups
    arrival = np.cumsum(world.exponential(0.35, n))
    prompt, output = world.integers(20, 400, n), world.integers(1, 60, n)
    names = [f"warmup-{i}" if i < warmups else f"{prefix}{i}" for i in range(n)]
    steps, rows, times = _run(arrival, prompt, output, noise, slower, blocks)
    status = ["finished"] * (n - aborted) + ["aborted"] * aborted
    finished = [t if s == "finished" else None for t, s in zip(times[2], status, strict=True)]
    tables = {
        "requests": pa.table(
            {
                "request_id": names, "arrival_s": arrival, "prompt_tokens": prompt,
                "output_tokens": output, "queued_s": arrival, "scheduled_s": times[0],
                "first_token_s": times[1], "finished_s": finished, "status": status,
            }
        ),
        "steps": _table(
            steps,
            ("step", "start_s", "end_s", "prefill_tokens", "decode_tokens", "running", "waiting",
             "free_blocks"),
        ),
        "step_requests": _table(
            [(r[0], names[r[1]], *r[2:]) for r in rows],
            ("step", "request_id", "scheduled_tokens", "computed_tokens", "emitted_tokens"),
        ),
    }  # fmt: skip
    engine = {"num_gpu_blocks": blocks + 1, "max_num_seqs": BATCH}
    manifest.setdefault("deployment", {"clusters": [{"name": "main", "engine": engine}]})
    defaults = {"engine": "vllm", "engine_version": "0.32.0", "command": ["vllm", "serve", "toy"]}
    write_bundle(path, Manifest(kind=kind, **defaults | manifest), tables)
    return read_bundle(path)


def fake_pair(path: Path, **options: Any) -> tuple[Bundle, Bundle]:
    """A measured bundle and a simulation of it that is 4 % slow and was fitted on neither."""
    measured = fake_bundle(path / "measured", seed=0, warmups=4)
    notes = {
        "operators": {"profile": "p" * 32, "fitted_on": ["f" * 32]},
        "step_time": {"steps": 1000, "extrapolated": 12},
        "kv_capacity": "captured",
    }
    settings = {"seed": 9, "slower": 1.04, "warmups": 4, "notes": notes, "ignored": ["LoRA"]}
    return measured, fake_bundle(path / "simulated", kind="simulated", **settings | options)


def _run(arrival, prompt, output, noise, slower, blocks):  # type: ignore[no-untyped-def]
    n, now, step, given = len(arrival), 0.0, 0, 0
    scheduled, first, last = (np.zeros(n) for _ in range(3))
    done = np.zeros(n, int)
    running: list[int] = []
    steps, rows = [], []
    while given < n or running:
        if not running:
            now = max(now, arrival[given])
        fresh = []
        while given < n and arrival[given] <= now and len(running) < BATCH and not fresh:
            fresh.append(given)
            running.append(given)
            scheduled[given] = now
            given += 1
        tokens = sum(int(prompt[i]) for i in fresh)
        decodes = len(running) - len(fresh)
        end = now + slower * (0.02 + 3e-4 * tokens + 2e-3 * decodes) * noise.lognormal(0, 0.05)
        for i in running:
            count = int(prompt[i]) if i in fresh else 1
            context = 0 if i in fresh else int(prompt[i] + done[i] - 1)
            rows.append((step, i, count, context, 1))
            done[i] += 1
            if i in fresh:
                first[i] = end
            last[i] = end
        used = sum(-(-int(prompt[i] + done[i]) // 16) for i in running)
        waiting = int(np.searchsorted(arrival, now, side="right")) - given
        steps.append(
            (step, now, end, tokens, decodes, len(running), waiting, max(0, blocks - used))
        )
        running = [i for i in running if done[i] < output[i]]
        now, step = end + 1e-4, step + 1
    return steps, rows, (scheduled, first, last)


def _table(rows: list[tuple[Any, ...]], names: tuple[str, ...]) -> pa.Table:
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    n = len(rows)
    return pa.table({"cluster": pa.array(["main"] * n), "replica": [0] * n, **columns})
