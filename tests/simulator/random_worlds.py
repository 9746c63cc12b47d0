"""Random worlds for whole simulations: the knobs that interact are drawn together."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from worlds import config, halving_step, linear_step, shared_step

from simulator.demand import Demand
from simulator.routing import ROUTERS
from simulator.scheduling import SchedulerConfig

PREFIXES = 3


@dataclass(frozen=True)
class World:
    """Requests, engines, and how they are run."""

    seed: int
    table: pa.Table
    hash_block_tokens: int
    config: SchedulerConfig
    how: dict[str, Any]

    def demand(self) -> Demand:
        """The requests anew, of which nothing has happened yet."""
        return Demand(self.table, self.config, self.hash_block_tokens)


def random_world(seed: int) -> World:
    """A world from its seed; arrivals and step times lie on a grid of a millisecond."""
    rng = random.Random(seed)
    block = rng.choice([4, 8, 16])
    longest = rng.choice([24, 60, 120])
    outputs = rng.choice([1, 8, 40])
    chunked = rng.random() < 0.75
    ranks = rng.choice([1, 1, 2, 3])
    stages = rng.choice([(1,), (1,), (3, 3), (2, 3, 2)]) if ranks == 1 else (1,)
    least = -(-(longest + 40) // block) + 1
    settings = config(
        num_gpu_blocks=least + (rng.randint(0, least // 2) if rng.random() < 0.6 else 4 * least),
        block_size=block,
        max_num_batched_tokens=rng.choice([8, 16, 64, 256]) if chunked else longest + 40,
        max_num_seqs=rng.choice([2, 4, 16]),
        max_model_len=longest + 40,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=rng.random() < 0.7,
        long_prefill_token_threshold=rng.choice([0, 0, 12]) if chunked else 0,
        long_prefill_token_threshold_adaptive=rng.random() < 0.2,
        scheduling_policy=rng.choice(["fcfs", "fcfs", "priority"]),
        async_scheduling=bool(seed % 2) and len(stages) == 1,
        scheduler_reserve_full_isl=rng.random() < 0.7,
        watermark=rng.choice([0.0, 0.0, 0.05]),
        lock_step_ranks=ranks,
        stage_layers=stages,
        dbo_decode_token_threshold=rng.choice([0, 2]) * (ranks > 1),
        dbo_prefill_token_threshold=rng.choice([2, 8]),
        dp_sync_interval=rng.choice([1, 3, 16]),
    )
    if not chunked:  # the scan stops at a prompt that does not fit, preempted or not
        assert settings.max_num_batched_tokens >= longest + 40
    given = rng.choice([block, 2 * block, block // 2])
    table = requests_table(rng, rng.randint(3, 30), longest, outputs, given)
    how = {
        "router": list(ROUTERS)[seed // 2 % len(ROUTERS)],
        "replicas": ranks * rng.randint(1, 4 if ranks == 1 else 2),
        "model": linear_step() if ranks == 1 else rng.choice([shared_step, halving_step])(),
        "concurrency": rng.choice([None, None, 1, 5]),
    }
    return World(seed, table, given, settings, how)


def requests_table(
    rng: random.Random, count: int, longest: int, outputs: int, hash_tokens: int
) -> pa.Table:
    """``count`` requests with prefixes, priorities and bursts."""
    burst = rng.choice([1, 2, 10])
    columns: dict[str, list[Any]] = {
        name: [] for name in
        ("request_id", "arrival_s", "prompt_tokens", "output_tokens", "priority", "block_hashes")
    }  # fmt: skip
    ms = 0
    for i in range(count):
        prompt, output = rng.randint(1, longest), rng.randint(1, outputs)
        # a prefix out of a few, then blocks of its own; sometimes the output's too
        known = (prompt + output * (rng.random() < 0.5)) // hash_tokens
        shared = rng.randint(0, known) if rng.random() < 0.6 else 0
        prefix = rng.randrange(PREFIXES)
        hashes = [1000 * (1 + prefix) + j for j in range(shared)]
        hashes += [10**6 * (1 + i) + j for j in range(shared, known)]
        for name, value in zip(
            columns, (f"r{i}", ms / 1000, prompt, output, rng.randint(0, 2), hashes), strict=True
        ):
            columns[name].append(value)
        if rng.random() < 1 / burst:
            ms += rng.randint(0, 30)
    types = {"block_hashes": pa.list_(pa.int64())}
    return pa.table({n: pa.array(v, types.get(n)) for n, v in columns.items()})
