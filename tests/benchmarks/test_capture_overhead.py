"""What recording costs a step, in CPU time: scheduler hooks and worker hooks, no model run.

Allowed is 1 % of a 5 ms step. vLLM's own scheduler and its recorded twin take turns, and
what is told is the median over the steps of their difference.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from replay.command import HOOKS
from simulator.scheduling import SchedulerConfig

pytestmark = [
    pytest.mark.bench,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # torch warns
]
pytest.importorskip("vllm")

STEP_US = 5000.0
ALLOWED = 0.01
BATCHES = (1, 16, 64, 128)
STEPS = 1000
WARM_STEPS = 100
# layers, experts, top_k, tokens in the step
MODELS = {
    "dense": (0, 0, 0, 64),
    "sample MoE": (6, 16, 2, 64),
    "Qwen3-30B-A3B": (48, 128, 8, 64),
}


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [str(HOOKS), *sys.path])
    monkeypatch.setenv("FRONTIER_KEY", "00" * 16)
    monkeypatch.setenv("FRONTIER_SPOOL", str(tmp_path / "spool"))
    return tmp_path / "spool"


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@pytest.mark.parametrize("batch", BATCHES)
def test_scheduler_hooks(batch: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Decode steps of ``batch`` requests: the most rows a token budget can hold."""
    from frontier_hooks.scheduler import RecordedScheduler
    from scheduler_world import Arrival, Case
    from vllm_side import VllmSide

    config = SchedulerConfig(
        num_gpu_blocks=batch * 160, block_size=16, max_num_batched_tokens=8192, max_num_seqs=batch,
        max_model_len=2048, enable_prefix_caching=True,
    )  # fmt: skip
    output = tuple(range(STEPS + WARM_STEPS + 1))
    arrivals = tuple(
        Arrival(f"r{i}", 0, tuple(range(i, i + 64)), output, 0, 0) for i in range(batch)
    )
    case = Case(0, config, arrivals)
    plain, recorded = (
        VllmSide(case, str(tmp_path)),
        VllmSide(case, str(tmp_path), RecordedScheduler),
    )
    for arrival in arrivals:
        plain.add(arrival)
        recorded.add(arrival)
    plain_us, hooks_us = [], []
    for step in range(WARM_STEPS + STEPS):
        cost_us = {}
        for side in (plain, recorded) if step % 2 else (recorded, plain):
            start_s = time.thread_time()
            ran, record, _ = side.schedule()
            side.update(ran)
            cost_us[side] = (time.thread_time() - start_s) * 1e6
            assert len(record[0]) == batch
        if step >= WARM_STEPS:
            plain_us.append(cost_us[plain])
            hooks_us.append(cost_us[recorded] - cost_us[plain])
    without, hooks = median(plain_us), median(hooks_us)
    with capsys.disabled():
        print(
            f"\nscheduler, {batch:3d} requests: {without:6.1f} us a step, recorded "
            f"{1 + hooks / without:.2f} x: +{hooks:.1f} us, {hooks / STEP_US:.2%} of a 5 ms step"
        )
    if batch <= 64:  # more do not decode in 5 ms with so slow a scheduler
        assert hooks < ALLOWED * STEP_US


@pytest.mark.parametrize("name", MODELS)
def test_worker_hooks(
    name: str, spool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recorded worker over one whose model takes no time."""
    import torch
    from frontier_hooks.forward import ForwardRecorder
    from frontier_hooks.worker import CaptureWorker, _Worker

    layers, experts, top_k, tokens = MODELS[name]
    routers = [SimpleNamespace(global_num_experts=experts, capture_fn=None) for _ in range(layers)]
    for router in routers:
        router.set_capture_fn = lambda fn, router=router: setattr(router, "capture_fn", fn)
    moe = [SimpleNamespace(layer_id=i, router=router) for i, router in enumerate(routers)]
    ids = [torch.randint(0, max(experts, 1), (tokens, max(top_k, 1)), dtype=torch.int32)
           for _ in range(layers)]  # fmt: skip

    def execute_model(self: Any, scheduler_output: Any) -> None:
        for router, layer_ids in zip(routers, ids, strict=True):
            if router.capture_fn is not None:
                router.capture_fn(layer_ids)

    monkeypatch.setattr(_Worker, "execute_model", execute_model)
    monkeypatch.setattr(_Worker, "sample_tokens", lambda self, grammar_output: object())

    def cost_us(worker: Any) -> float:
        costs = []
        for step in range(STEPS):
            output = SimpleNamespace(frontier_step=step)
            start_s = time.thread_time()
            worker.execute_model(output)
            worker.sample_tokens(None)
            costs.append((time.thread_time() - start_s) * 1e6)
        return median(costs)

    without = cost_us(object.__new__(_Worker))
    worker = object.__new__(CaptureWorker)
    model = SimpleNamespace(modules=lambda: moe)
    alone = SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=1, data_parallel_size=1),
        compilation_config=SimpleNamespace(mode=SimpleNamespace(name="NONE")),
    )
    worker.frontier = ForwardRecorder(spool, 0, 0, alone, model, "cpu")
    hooks_us = cost_us(worker) - without
    with capsys.disabled():
        print(
            f"\nworker, {name}: {layers} MoE layers, {tokens} tokens: +{hooks_us:.1f} us, "
            f"{hooks_us / STEP_US:.2%} of a 5 ms step"
        )
    if name != "Qwen3-30B-A3B":  # on a CPU its step takes seconds
        assert hooks_us < ALLOWED * STEP_US
