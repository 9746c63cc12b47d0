"""The benchmarks' workloads, from seeds, and a step time of full operator tables.

An A100-like device with a Llama-2-7B: 256 seats, a budget of 2048 tokens, 7000 KV blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulator.demand import Demand
from simulator.scheduling import SchedulerConfig
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.functions import Axis, Constant, Function, Shared, Table
from traces.load import load_workload

Floats = npt.NDArray[np.float64]
SHARED = Path(__file__).resolve().parents[3] / "shared/data/workloads"
MOONCAKE = SHARED / "mooncake_conversation_trace.jsonl.gz"
ENGINE = SchedulerConfig(
    num_gpu_blocks=7000,
    block_size=16,
    max_num_batched_tokens=2048,
    max_num_seqs=256,
    max_model_len=4096,
    async_scheduling=True,
)


@dataclass(frozen=True)
class Bench:
    """A workload of ``requests`` on ``replicas`` engines behind a router."""

    name: str
    requests: int
    replicas: int
    table: Callable[[Bench], pa.Table]
    router: str = "round_robin"
    config: SchedulerConfig = ENGINE
    prompt: float = 512
    output: float = 128
    rate: float = 10.0  # requests a second and replica
    hash_block_tokens: int | None = None

    def scaled(self, factor: float) -> Bench:
        """So many more requests, and engines to serve them at the same load."""
        engines = max(1, round(self.replicas * factor))
        return replace(self, requests=round(self.requests * factor), replicas=engines)

    def demand(self) -> Demand:
        """The requests anew."""
        return Demand(self.table(self), self.config, self.hash_block_tokens)


def fixed(bench: Bench) -> pa.Table:
    """Poisson arrivals of requests that are all alike."""
    count = np.ones(bench.requests, np.int64)
    return _table(bench, count * int(bench.prompt), count * int(bench.output))


def lognormal(bench: Bench) -> pa.Table:
    """Poisson arrivals; lengths lognormal around the same means."""
    rng = np.random.default_rng(1)

    def lengths(mean: float, most: int) -> npt.NDArray[np.int64]:
        sigma = 0.8
        drawn = rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, bench.requests)
        return np.clip(drawn.round(), 4, most).astype(np.int64)

    return _table(bench, lengths(bench.prompt, 3000), lengths(bench.output, 1000))


def conversations(bench: Bench) -> pa.Table:
    """Sessions of four turns, each beginning with all that was said before, in 16-token blocks."""
    rng = np.random.default_rng(2)
    turns, step = 4, 256
    session, turn = np.divmod(np.arange(bench.requests), turns)
    arrivals = np.cumsum(
        rng.exponential(turns / bench.rate / bench.replicas, bench.requests // turns + 1)
    )
    at = arrivals[session] + 20.0 * turn
    prompts = step * (1 + turn)
    hashes = [
        ((1 + s) * 1000 + np.arange(p // 16)).tolist()
        for s, p in zip(session, prompts, strict=True)
    ]
    order = np.argsort(at, kind="stable")
    table = _columns(at, prompts, np.full(bench.requests, int(bench.output)))
    return table.append_column("block_hashes", pa.array(hashes, pa.list_(pa.int64()))).take(order)


def mooncake(bench: Bench) -> pa.Table:
    """Mooncake's conversations, at twice their rate; from outside the repository."""
    table = load_workload(MOONCAKE).requests.slice(0, bench.requests)
    at = table["arrival_s"].to_numpy() / 2
    return table.set_column(table.column_names.index("arrival_s"), "arrival_s", pa.array(at))


BENCHES = {
    bench.name: bench
    for bench in (
        Bench("1x10k", 10_000, 1, fixed),
        Bench("16x10k", 10_000, 16, fixed),
        Bench("lognormal", 100_000, 64, lognormal, router="least_loaded"),
        Bench("long outputs", 4_000, 4, fixed, output=2048, rate=1.0),
        Bench(
            "preemption", 10_000, 1, lognormal, config=replace(ENGINE, num_gpu_blocks=1000), rate=12
        ),
        Bench("conversations", 10_000, 4, conversations, hash_block_tokens=16),
        Bench(
            "mooncake",
            12_031,
            8,
            mooncake,
            hash_block_tokens=512,
            router="least_loaded",
            config=replace(
                ENGINE, max_model_len=131072, max_num_batched_tokens=8192, num_gpu_blocks=40_000
            ),
        ),
        Bench("1024x1M", 1_000_000, 1024, fixed, router="least_loaded"),
    )
}


def _table(
    bench: Bench, prompts: npt.NDArray[np.int64], outputs: npt.NDArray[np.int64]
) -> pa.Table:
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.exponential(1 / (bench.rate * bench.replicas), bench.requests))
    return _columns(at, prompts, outputs)


def _columns(
    at: Floats, prompts: npt.NDArray[np.int64], outputs: npt.NDArray[np.int64]
) -> pa.Table:
    ids = pa.array(np.arange(len(at))).cast(pa.string())
    return pa.table(
        {"request_id": ids, "arrival_s": at, "prompt_tokens": prompts, "output_tokens": outputs}
    )


HIDDEN, INTER, LAYERS, VOCAB = 4096, 11008, 32, 32000
BYTES_PER_S, FLOPS = 1.6e12, 200e12
LAUNCH_S = 4e-6


def shared_experts(*, alike: bool = False) -> list[tuple[float, Function]]:
    """Experts of eight ranks: their work and the wait for the slowest, drawn 32 times.

    ``alike``: by the tokens of prompts and those of decodes, as where a prompt's are alike.
    """
    grid = np.unique(np.geomspace(1, 8 * 2048, 29).round())
    wait = np.random.default_rng(3).gamma(4.0, 0.05, (32, 1))
    work = LAYERS * (LAUNCH_S + grid / 8 * 6 * HIDDEN * 2048 / FLOPS)
    if alike:
        beside = np.append(0.0, grid[grid <= 8 * 512])
        work = work + beside[:, None] * work[-1] / grid[-1]
        wait = wait[..., None]
        return [(1.0, Shared(grid, w, beside=beside)) for w in (work[None], wait * work)]
    return [(1.0, Shared(grid, [work])), (1.0, Shared(grid, wait * work))]


def full_tables(more: Sequence[tuple[float, Function]] = ()) -> CompiledStepTime:
    """Twelve tables, a roofline of each operator sampled on logarithmic grids, and ``more``."""
    layer = [
        (2.0, _line("tokens", lambda m: m * HIDDEN * 4 / BYTES_PER_S)),  # norms
        (1.0, _line("tokens", lambda m: m * HIDDEN * 6 / BYTES_PER_S)),  # rotary
        (1.0, _line("tokens", lambda m: m * HIDDEN * 8 / BYTES_PER_S)),  # KV write
        (1.0, _line("tokens", lambda m: m * INTER * 6 / BYTES_PER_S)),  # activation
        (1.0, _line("tokens", lambda m: _gemm(m, 3 * HIDDEN, HIDDEN))),
        (1.0, _line("tokens", lambda m: _gemm(m, HIDDEN, HIDDEN))),
        (1.0, _line("tokens", lambda m: _gemm(m, 2 * INTER, HIDDEN))),
        (1.0, _line("tokens", lambda m: _gemm(m, HIDDEN, INTER))),
        (1.0, _plane("decodes", "decode_context", lambda b, c: (b + c) * HIDDEN * 4 / BYTES_PER_S)),
        (1.0, _plane("prefill_tokens", "prefill_pairs", lambda q, p: q * HIDDEN * 8 / BYTES_PER_S
                     + p * HIDDEN * 4 / FLOPS)),
    ]  # fmt: skip
    once = [
        (1.0, _line("sampled", lambda m: _gemm(m, VOCAB, HIDDEN))),
        (1.0, _line("sampled", lambda m: m * VOCAB * 8 / BYTES_PER_S)),
    ]
    forward = [(LAYERS * times, table) for times, table in layer] + once
    host: list[tuple[float, Function]] = [(1e-4, Constant())]
    return CompiledStepTime([*forward, *more], host, host)


def _gemm(m: Floats, n: int, k: int) -> Floats:
    work: Floats = np.maximum(2 * m * n * k / FLOPS, 2 * (n * k + m * (n + k)) / BYTES_PER_S)
    return work


def _line(feature: str, seconds: Callable[[Floats], Floats]) -> Table:
    grid = np.geomspace(1, 8192, 27)
    return Table(Axis(feature, grid, log=True), [LAUNCH_S + seconds(grid)], log=True)


def _plane(x: str, y: str, seconds: Callable[[Floats, Floats], Floats]) -> Table:
    columns, lines = np.geomspace(1, 8192, 14), np.geomspace(1, 2e9, 32)
    values = LAUNCH_S + seconds(columns[None, :], lines[:, None])
    return Table(Axis(x, columns, log=True), values, Axis(y, lines, log=True), log=True)
