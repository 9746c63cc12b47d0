"""Weights, KV blocks and their refusals; computed capacity against real engines."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from simulator.deployment import SHIPPED, Engine
from simulator.hardware import load_hardware
from simulator.memory import (
    activation_bytes,
    block_bytes,
    graph_bytes,
    kv_capacity,
    memory_budget,
    pipeline_stages,
)
from simulator.model import ModelSpec, load_model
from simulator.weights import parameters, weight_bytes
from traces.errors import ConfigError

SERVING = SHIPPED.parent / "shared" / "data" / "serving"


def shipped(name: str) -> ModelSpec:
    return load_model(SHIPPED / "traces" / "models" / f"{name}.json")


def blocks(model: str, memory_gb: float, version: str | None = None, **engine: Any) -> int:
    return kv_capacity(shipped(model), Engine(**engine), memory_gb, "main", version).blocks


def refusal(model: str, memory_gb: float | None, **engine: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        kv_capacity(shipped(model), Engine(**engine), memory_gb, "main")
    return str(caught.value)


def test_capacity_of_a_real_h100() -> None:
    path = SERVING / "h100-qwen3-14b-vllm0.23" / "server_config.json"
    if not path.exists():
        pytest.skip("shared data is not here")
    real = json.loads(path.read_text())
    names = ("tensor_parallel_size", "max_num_batched_tokens", "block_size")
    engine = {name: real[name] for name in names} | {"max_model_len": real["max_seq_len"]}
    memory_gb = load_hardware("h100_sxm").memory_gb
    assert memory_gb is not None
    computed = blocks("qwen3-14b", memory_gb, real["vllm_version"], **engine)
    assert computed == pytest.approx(real["num_gpu_blocks"], rel=0.02)


def test_capacity_of_a_real_rtx_4090() -> None:
    path = SERVING / "rtx4090-llama3.1-8b-vllm0.19" / "meta.json"
    if not path.exists():
        pytest.skip("shared data is not here")
    real = json.loads(path.read_text())
    names = ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "dtype")
    engine = {name: real["engine_kwargs"][name] for name in names}
    sheet = load_hardware(real["hardware"]["device_name"])
    memory_gb = real["hardware"]["device_total_memory_bytes"] / 1e9
    assert sheet.memory_gb == pytest.approx(memory_gb, rel=1e-3)
    computed = blocks("llama-3.1-8b", memory_gb, real["vllm_version"], **engine)
    assert computed == pytest.approx(real["kv_cache"]["num_gpu_blocks"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "checkpoint_gb"),
    [
        ("llama-3.1-8b", 16.06),
        ("gpt-oss-20b", 13.76),  # mxfp4 experts, the rest bf16
        ("gpt-oss-120b", 65.25),
        ("qwen3-30b-a3b", 61.06),
    ],
)
def test_weights_take_what_the_published_checkpoint_takes(name: str, checkpoint_gb: float) -> None:
    assert weight_bytes(shipped(name), Engine()) / 1e9 == pytest.approx(checkpoint_gb, rel=0.01)


def test_fp8_halves_the_linear_weights_and_keeps_embeddings() -> None:
    model = shipped("llama-3.1-8b")
    plain, fp8 = weight_bytes(model, Engine()), weight_bytes(model, Engine(quantization="fp8"))
    kept = 2 * model.vocab * model.hidden + (2 * model.layers + 1) * model.hidden
    assert plain - fp8 == parameters(model) - kept


def test_deepseek_fp8_keeps_the_absorbed_projections_in_bf16_too() -> None:
    model = shipped("deepseek-v3")
    absorbed = 61 * 512 * 128 * (128 + 128) * 2
    embeddings = 2 * 129_280 * 7168
    expected = parameters(model) + embeddings + absorbed
    assert weight_bytes(model, Engine()) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "mixtral-8x7b", "deepseek-v3", "gpt-oss-120b"])
def test_ranks_share_the_weights(name: str) -> None:
    model = shipped(name)
    whole = weight_bytes(model, Engine())
    split = 8 * weight_bytes(model, Engine(tensor_parallel_size=8))
    assert whole <= split < 1.05 * whole  # what is on every rank counts eight times


def test_experts_are_spread_over_tensor_and_data_parallel_ranks() -> None:
    model = shipped("deepseek-v3")
    assert model.moe is not None
    routed = 3 * model.hidden * model.moe.inter * model.moe.experts * model.moe_layers
    alone = weight_bytes(model, Engine())
    spread = weight_bytes(model, Engine(data_parallel_size=32, enable_expert_parallel=True))
    assert alone - spread == pytest.approx(routed * 31 / 32, rel=1e-9)
    spare = Engine(
        data_parallel_size=32, enable_expert_parallel=True, enable_eplb=True,
        num_redundant_experts=32,
    )  # fmt: skip
    assert weight_bytes(model, spare) - spread == routed // 256


def test_stages_share_layers_and_embeddings_stay_at_the_ends() -> None:
    model, engine = shipped("llama-3.1-8b"), Engine(pipeline_parallel_size=4)
    stages = pipeline_stages(model.layers, 4)
    first, second, _, last = [weight_bytes(model, engine, stage) for stage in stages]
    embedding = model.vocab * model.hidden * 2
    assert first - second == embedding
    assert last - second == embedding + model.hidden * 2


def test_activations_are_the_mlp_s_or_the_sampler_s() -> None:
    model = shipped("llama-3.1-8b")
    engine = Engine(max_num_batched_tokens=8192, max_num_seqs=16)
    assert activation_bytes(model, engine) == 8192 * (2 * 4096 + 3 * 14336) * 2
    crowd = Engine(max_num_batched_tokens=1024, max_num_seqs=1024)
    assert activation_bytes(model, crowd) == 1024 * 4096 * 2 + 128256 * (1024 * 14 + 128 * 4)


def test_graphs_cost_a_mebibyte_each_since_0_20() -> None:
    model, engine = shipped("llama-3.1-8b"), Engine(max_num_seqs=256)
    sizes = engine.graph_sizes()
    assert (len(sizes), sizes[-1]) == (51, 512)
    widest = 512 * (2 * 4096 + 3 * 14336) * 2
    assert graph_bytes(model, engine) == widest + (51 + 35) * (1 << 20)
    assert graph_bytes(model, Engine(enforce_eager=True)) == 0
    assert graph_bytes(model, Engine(cudagraph_capture_sizes=())) == 0


@pytest.mark.parametrize(
    ("version", "recent"),
    [("0.19.1", False), ("0.20.0", True), ("0.32.0+cpu", True), (None, True), ("main", True)],
)
def test_defaults_changed_with_0_20(version: str | None, recent: bool) -> None:
    model = shipped("llama-3.1-8b")
    budget = memory_budget(model, Engine(), 100.0, range(model.layers), version)
    assert budget.granted == pytest.approx(92e9 if recent else 90e9)
    assert (budget.graphs > 0) == recent


@pytest.mark.parametrize(
    ("name", "engine", "expected"),
    [
        ("qwen3-14b", {}, 16 * 2 * 8 * 128 * 40 * 2),
        ("qwen3-14b", {"kv_cache_dtype": "fp8"}, 16 * 2 * 8 * 128 * 40),
        ("qwen3-14b", {"tensor_parallel_size": 4}, 16 * 2 * 2 * 128 * 40 * 2),
        ("gpt-oss-120b", {}, 16 * 2 * 8 * 64 * 18 * 2),  # two groups of 18 layers
        ("deepseek-v3", {"tensor_parallel_size": 8, "block_size": 64}, 64 * 576 * 61 * 2),
    ],
)
def test_bytes_of_a_block(name: str, engine: dict[str, Any], expected: int) -> None:
    assert block_bytes(shipped(name), Engine(**engine)) == expected


def test_a_stage_holds_its_share_of_every_group() -> None:
    model = shipped("gpt-oss-120b")
    assert block_bytes(model, Engine(), range(9)) == 16 * 2 * 8 * 64 * 5 * 2


def test_the_poorest_stage_decides() -> None:
    model, engine = shipped("llama-3.1-70b"), Engine(pipeline_parallel_size=4, max_model_len=8192)
    capacity = kv_capacity(model, engine, 85.0, "main")
    room = [
        memory_budget(model, engine, 85.0, stage).left // block_bytes(model, engine, stage)
        for stage in pipeline_stages(80, 4)
    ]
    assert capacity.blocks == min(room) == room[3]  # it has the last norm beside the embedding
    assert capacity.source == "computed"


def test_given_blocks_are_taken() -> None:
    capacity = kv_capacity(shipped("llama-3.1-70b"), Engine(num_gpu_blocks=60), None, "main")
    assert (capacity.blocks, capacity.source) == (60, "given")


def test_more_of_anything_is_never_fewer_blocks() -> None:
    sizes = [blocks("llama-3.1-8b", memory, max_model_len=4096) for memory in (25, 40, 80, 141)]
    assert sizes == sorted(set(sizes))
    budgets = [
        blocks("llama-3.1-8b", 80, max_model_len=4096, max_num_batched_tokens=n)
        for n in (32768, 8192, 2048)
    ]
    assert budgets == sorted(budgets)


def test_memory_unknown() -> None:
    assert refusal("llama-3.1-8b", None) == (
        "clusters[main].engine.num_gpu_blocks: needed, the hardware sheet names no device memory"
    )


def test_weights_that_do_not_fit() -> None:
    assert refusal("llama-3.1-70b", 85.0) == (
        "clusters[main].engine: the weights do not fit: 141.1 GB a rank, 78.2 GB granted, "
        "62.9 GB too much"
    )


def test_no_block_fits() -> None:
    assert refusal("llama-3.1-8b", 18.0) == (
        "clusters[main].engine: no KV block fits: 16.6 GB granted - 16.1 GB weights - 0.8 GB "
        "activations - 0.1 GB CUDA graphs - 0.6 GB runtime = -1.1 GB"
    )


def test_one_request_of_max_model_len_does_not_fit() -> None:
    """As vLLM: blocks less the null block, in whole blocks."""
    assert refusal("llama-3.1-8b", 25.25, max_num_batched_tokens=2048) == (
        "clusters[main].engine.max_model_len: one request of 131072 tokens does not fit in the "
        "KV cache: 2799 blocks of 16 hold at most 44784 (23.2 GB granted - 16.1 GB weights - "
        "0.5 GB activations - 0.1 GB CUDA graphs - 0.6 GB runtime = 5.9 GB)"
    )
    model = "llama-3.1-8b"
    assert blocks(model, 25.25, max_num_batched_tokens=2048, max_model_len=44784) == 2800
    assert "44785" in refusal(model, 25.25, max_num_batched_tokens=2048, max_model_len=44785)


def test_unknown_formats() -> None:
    assert refusal("llama-3.1-8b", 80, quantization="awk") == (
        "engine.quantization: unknown 'awk'; did you mean 'awq'? (known: awq, awq_marlin, fp8, "
        "gptq, gptq_marlin, modelopt, modelopt_fp4, mxfp4)"
    )
    strange = replace(shipped("llama-3.1-8b"), quantization="bitsandbytes")
    with pytest.raises(ConfigError) as caught:
        weight_bytes(strange, Engine())
    assert str(caught.value) == (
        "model: weights in an unknown format 'bitsandbytes' (known: fp8, fp8_block, int4, int8, "
        "mxfp4, nvfp4)"
    )
    assert refusal("llama-3.1-8b", 80, kv_cache_dtype="fp9") == (
        "dtype 'fp9' is unknown; did you mean 'fp8'? (known: bfloat16, float16, float32, fp8, "
        "fp8_e4m3, fp8_e5m2, int8)"
    )
