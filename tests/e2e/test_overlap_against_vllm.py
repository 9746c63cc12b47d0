"""When ranks run a step in two halves, against vLLM's own code, on random batches."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from worlds import config

from simulator.deployment import Engine
from simulator.lockstep import runs_halves
from simulator.step_time.base import BatchShape

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # torch warns
pytest.importorskip("vllm")

STEPS = 400


def overlap(decode: int, prefill: int) -> Any:
    """As much of a ParallelConfig as the decision touches."""
    return SimpleNamespace(
        use_ubatching=True, num_ubatches=2, dbo_decode_token_threshold=decode,
        dbo_prefill_token_threshold=prefill,
    )  # fmt: skip


def vllm_halves(parallel: Any, ranks: list[list[int]]) -> bool:
    """What the ranks agree on, each with requests of so many scheduled tokens."""
    import torch
    from vllm.v1.worker.dp_utils import _post_process_ubatch
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.ubatch_utils import check_ubatch_thresholds

    agreed = torch.zeros(4, len(ranks), dtype=torch.int32)
    for i, queries in enumerate(ranks):
        uniform = GPUModelRunner._is_uniform_decode(max(queries), 1, sum(queries), len(queries))
        agreed[:2, i] = sum(queries)  # eager: as many after padding
        agreed[2, i] = check_ubatch_thresholds(parallel, sum(queries), uniform_decode=uniform)
    return _post_process_ubatch(agreed, parallel.num_ubatches)


@pytest.mark.parametrize("seed", range(5))
def test_halves_are_run_when_vllm_runs_them(seed: int) -> None:
    rng = random.Random(seed)
    found = []
    for _ in range(STEPS):
        decode, prefill = rng.choice([2, 32]), rng.choice([2, 64, 512])
        size = rng.choice([2, 16, 64, 600])
        ranks = [
            [1] * rng.randint(1, size) + [rng.randint(1, size)] * rng.choice([0, 0, 1])
            for _ in range(rng.choice([2, 4]))
        ]
        shapes = [
            BatchShape(tokens=sum(queries), rows=len(queries), decodes=queries.count(1))
            for queries in ranks
        ]
        limits = {"dbo_decode_token_threshold": decode, "dbo_prefill_token_threshold": prefill}
        found.append(runs_halves(config(**limits), shapes))
        assert found[-1] == vllm_halves(overlap(decode, prefill), ranks), (ranks, decode, prefill)
    assert 0.1 < sum(found) / STEPS < 0.9


def test_thresholds_are_those_of_vllm() -> None:
    from vllm.config import ParallelConfig

    for name in ("dbo_decode_token_threshold", "dbo_prefill_token_threshold"):
        assert getattr(Engine(), name) == getattr(ParallelConfig(), name)
