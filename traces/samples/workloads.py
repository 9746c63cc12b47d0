"""The workloads that the sample servers are given."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from traces.bundle import Bundle, write_table

BLOCK_TOKENS = 32
# log-normal prompt and output lengths: median, sigma, smallest, largest
LENGTHS = {
    "plain": ((240, 0.6, 64, 768), (56, 0.55, 16, 160)),
    "decode-heavy": ((96, 0.6, 32, 256), (150, 0.55, 48, 400)),
}


def requests(rng: np.random.Generator, n: int, shape: str, rate_per_s: float) -> pa.Table:
    """Requests of a shape at a rate: Poisson arrivals, or sessions."""
    if shape == "sessions":
        return session_workload(rng, n, rate_per_s)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, n))
    prompt, output = LENGTHS[shape]
    return pa.table(
        {
            "request_id": [f"r{i:04d}" for i in range(n)],
            "arrival_s": arrival_s - arrival_s[0],
            "prompt_tokens": lengths(rng, n, *prompt),
            "output_tokens": lengths(rng, n, *output),
        }
    )


def session_workload(rng: np.random.Generator, n: int, rate_per_s: float) -> pa.Table:
    """Conversations of four turns behind one of three system prompts; a turn repeats the last."""
    turns = 4
    systems = [rng.integers(1 << 40, size=size).tolist() for size in (64, 128, 224)]
    starts_s = np.cumsum(rng.exponential(turns / rate_per_s, n // turns))
    rows: list[dict[str, Any]] = []
    for s, start_s in enumerate(starts_s - starts_s[0]):
        tokens, due_s = list(systems[s % len(systems)]), float(start_s)
        for turn in range(turns):
            asked, answered = int(rng.integers(20, 110)), int(rng.integers(16, 90))
            think_s = float(rng.uniform(2.0, 6.0)) if turn else 0.0
            due_s += think_s
            tokens += rng.integers(1 << 40, size=asked).tolist()
            prompt_tokens = len(tokens)
            tokens += rng.integers(1 << 40, size=answered).tolist()
            rows.append(
                {
                    "request_id": f"s{s:03d}-{turn}",
                    "arrival_s": due_s,
                    "prompt_tokens": prompt_tokens,
                    "output_tokens": answered,
                    "session_id": f"s{s:03d}",
                    "turn": turn,
                    "think_s": think_s,
                    "block_hashes": hashes(tokens),
                }
            )
            due_s += 0.8  # about what an answer takes: the next turn must contain it
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["arrival_s"]))


def hashes(tokens: list[int]) -> list[int]:
    """Chained hash of every full block."""
    chain, parent = [], b""
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        block = np.array(tokens[end - BLOCK_TOKENS : end], np.int64).tobytes()
        parent = blake2b(parent + block, digest_size=8).digest()
        chain.append(int.from_bytes(parent, "little", signed=True))
    return chain


def lengths(
    rng: np.random.Generator, n: int, median: float, sigma: float, low: int, high: int
) -> np.ndarray:
    """Log-normal token counts, drawn again while outside [low, high]."""
    found = np.empty(0, np.int64)
    while len(found) < n:
        drawn = rng.lognormal(np.log(median), sigma, n).astype(np.int64)
        found = np.concatenate([found, drawn[(drawn >= low) & (drawn <= high)]])
    return found[:n]


def add_sessions(bundle: Bundle, workload: Bundle) -> None:
    """Add to the engine's requests what only the workload knows: session, turn, think time."""
    known = {row["request_id"]: row for row in workload.requests.to_pylist()}
    rows = [known.get(i, {}) for i in bundle.requests.column("request_id").to_pylist()]
    table = bundle.requests
    for name in ("session_id", "turn", "think_s"):
        values = pa.array([row.get(name) for row in rows])
        table = table.append_column(name, values)
    write_table(bundle.path, "requests", table)
