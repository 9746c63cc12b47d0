"""Our choice of a data-parallel rank against vLLM's own code, on random loads."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from simulator.routing import VllmDP

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # torch warns
pytest.importorskip("vllm")

EVENTS = 600


@dataclass
class Rank:
    """What our rule may see of a rank."""

    unfinished: int = 0
    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0


def client_of(ranks: int) -> Any:
    """As much of a DPLBAsyncMPClient as its choice and its bookkeeping touch."""
    return SimpleNamespace(
        reqs_in_flight={}, engine_inflight=Counter(), client_count=1, eng_start_index=0,
        core_engines=[rank.to_bytes(2, "little") for rank in range(ranks)],
        lb_engines=[[0, 0, 0.0] for _ in range(ranks)],
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_every_choice_is_vllms(seed: int) -> None:
    """Bursts, finishes and stale snapshots in random order; ties are common, as are queues."""
    from vllm.v1.engine.core_client import DPLBAsyncMPClient as Client

    rng = random.Random(seed)
    ranks = [Rank() for _ in range(rng.choice([2, 3, 8, 16]))]
    ours, theirs = VllmDP(ranks), client_of(len(ranks))
    placed: dict[str, int] = {}
    chosen = Counter[int]()
    for number in range(EVENTS):
        event = rng.random()
        if event < 0.1:
            full = rng.random() < 0.5
            loads = [
                (rng.randrange(12), rng.randrange(9), rng.random() if full else 0.25 * rng.random())
                for _ in ranks
            ]
            ours.publish(loads)
            theirs.lb_engines = [list(load) for load in loads]
        elif event < 0.45 and placed:
            name = rng.choice(sorted(placed))
            rank = placed.pop(name)
            ranks[rank].unfinished -= 1
            ours.finished(rank)
            done = SimpleNamespace(finished_requests={name})
            asyncio.run(Client.process_engine_outputs(theirs, done))
        else:
            request = SimpleNamespace(
                request_id=f"r{number}", data_parallel_rank=None, pooling_params=None
            )
            engine = Client.get_core_engine_for_request(theirs, request)
            rank = ours.choose()
            assert theirs.core_engines.index(engine) == rank, number
            ranks[rank].unfinished += 1
            placed[request.request_id] = rank
            chosen[rank] += 1
    assert chosen.total() > EVENTS // 3
    assert len(chosen) == len(ranks)
