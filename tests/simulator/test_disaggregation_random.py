"""Random disaggregated worlds: the compiled engines against the plain ones, bit for bit."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from pd_oracle import Oracle
from pd_worlds import run_pd, sides_of
from random_worlds import requests_table
from worlds import config

from simulator.disaggregation.connection import Connection, KVLayout
from simulator.disaggregation.setup import demands
from simulator.disaggregation.simulation import PrefillDecode
from simulator.fleet import CompiledFleet, PlainFleet
from simulator.routing import ROUTERS
from simulator.scheduling import SchedulerConfig

WORLDS = 150
AT_LEAST = 10


def random_pd_world(seed: int) -> tuple[pa.Table, dict[str, Any]]:
    """Requests and how they are run; times lie on a grid of half a millisecond."""
    rng = random.Random(seed)
    block, longest = rng.choice([4, 8, 16]), rng.choice([24, 60, 120])
    given = rng.choice([block, 2 * block, block // 2])
    push = rng.random() < 0.4
    roomy = 40 if push else 1  # with less, requests may wait for ever
    how = {
        "prefill": _engine(rng, "kv_producer", block, longest),
        "decode": _engine(rng, "kv_consumer", block, longest, roomy),
        "replicas": (rng.randint(1, 3), rng.randint(1, 3)),
        "routers": (rng.choice(list(ROUTERS)), rng.choice(list(ROUTERS))),
        "hash_block_tokens": given,
        "layout": KVLayout(rng.choice([10**5, 10**6, 10**7]), 4, rng.choice([1, 2])),
        "skip_decode": rng.random() < 0.3,
        "concurrency": rng.choice([None, None, 1, 5]),
        "proxy_ps": rng.choice([0, 3 * 10**9]),
        "loads_late": rng.random() < 0.3,
        "frontend_ps": rng.choice([0, 10**9]),
        "transfer": "push" if push else "pull",
        "layerwise": push and rng.random() < 0.5,
        "contention": rng.choice(["fair", "fifo", "none"]),
        "shared_by": rng.choice(["all", "source", "destination", "pair"]),
        "setup_us": rng.choice([0, 500]),
        "latency_us": rng.choice([0, 1000]),
        "lease_s": rng.choice([30, 30, 0.05]),
        "lease_renewal": rng.random() < 0.5,
    }
    outputs = rng.choice([1, 8, 40])
    return requests_table(rng, rng.randint(3, 30), longest, outputs, given), how


def _engine(
    rng: random.Random, role: str, block: int, longest: int, roomy: int = 1
) -> SchedulerConfig:
    chunked = rng.random() < 0.75
    least = roomy * -(-(longest + 40) // block) + 1
    return config(
        kv_role=role,
        num_gpu_blocks=least + (rng.randint(0, least // 2) if rng.random() < 0.6 else 4 * least),
        block_size=block,
        max_num_batched_tokens=rng.choice([8, 16, 64, 256]) if chunked else longest + 40,
        max_num_seqs=rng.choice([2, 4, 16]),
        max_model_len=longest + 40,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=rng.random() < 0.7,
        long_prefill_token_threshold=rng.choice([0, 0, 12]) if chunked else 0,
        scheduling_policy=rng.choice(["fcfs", "fcfs", "priority"]),
        async_scheduling=rng.random() < 0.5,
        scheduler_reserve_full_isl=rng.random() < 0.7,
        watermark=rng.choice([0.0, 0.0, 0.05]),
    )


def assert_as_oracle(simulation: PrefillDecode, requests: pa.Table, how: dict[str, Any]) -> None:
    """Every time of every request is that of a plain event-by-event run."""
    sides = sides_of(how)
    asked = demands(
        requests, sides[0], sides[1], how["hash_block_tokens"], skip_decode=how["skip_decode"]
    )
    connection = Connection(simulation.connection.link, how["layout"])
    times = Oracle(sides[0], sides[1], asked, connection, how["proxy_ps"]).run()
    handovers = simulation.handovers
    last = simulation.decode.demand.records
    for i, of in enumerate(times):
        assert of["prefilled"] == handovers.finished_ps[i], (i, how)
        assert of["source"] == handovers.prefill_replica[i], (i, how)
        assert bool(of.get("lost")) == handovers.lost[i], (i, how)
        if "finished" in of:
            ours = {"destination": handovers.decode_replica[i], "start": handovers.start_ps[i],
                    "end": handovers.end_ps[i], "finished": last["finished_ps"][i],
                    "first_token": last["first_token_ps"][i]}  # fmt: skip
            assert {name: of[name] for name in ours} == ours, (i, how)


def test_same_tables_in_random_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    seen: Counter[str] = Counter()
    for seed in range(WORLDS):
        requests, how = random_pd_world(seed)
        simulation, plain = run_pd(requests, PlainFleet, **how)
        if how["concurrency"] is None:
            assert_as_oracle(simulation, requests, how)
            seen["oracle"] += 1
        compiled = run_pd(requests, CompiledFleet, **how)[1]
        for name, table in plain.items():
            assert table.equals(compiled[name]), f"{name} of world {seed}: {how}"
        done = plain["requests"].to_pydict()
        assert set(done["status"]) <= {"finished", "failed"}
        assert done["output_tokens"] == requests["output_tokens"].to_pylist()
        blocks = simulation.handovers.column("blocks")
        moved = blocks > 0
        whole = -(-requests["prompt_tokens"].to_numpy() // how["decode"].block_size)
        seen.update(
            {
                "lost lease": sum(simulation.handovers.lost) > 0,
                "preemption": sum(done["preemptions"]) > 0,
                "decode has a prefix": bool((blocks < whole)[moved].any()),
                "no decode": not moved.all(),
                "several decode replicas": len(set(done["decode_replica"])) > 1,
                "asynchronous": how["decode"].async_scheduling,
                how["transfer"]: True,
            }
        )
    with capsys.disabled():
        print(f"\n{WORLDS} disaggregated worlds equal; seen {dict(seen)}")
    assert {what: n for what, n in seen.items() if n < AT_LEAST} == {}
