"""HF config -> model spec, on the shipped configs: facts of the public ones, by their keys."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from simulator.deployment import SHIPPED
from simulator.model import MLASpec, ModelSpec, load_model, model_from_config
from simulator.weights import parameters
from traces.errors import ConfigError

MODELS = SHIPPED / "traces" / "models"
# As the model hub shows them, counted from the checkpoints (DeepSeek-V3 without its MTP layer).
PUBLISHED = {
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
    "gpt-oss-120b": 116_829_156_672,
    "gpt-oss-20b": 20_914_757_184,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-14b": 14_768_307_200,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-32b": 32_762_123_264,
}
PEER = {  # the shipped models whose config aiconfigurator-core has too
    "deepseek-v3": "deepseek-ai--DeepSeek-V3",
    "gpt-oss-120b": "openai--gpt-oss-120b",
    "gpt-oss-20b": "openai--gpt-oss-20b",
    "llama-3.1-70b": "meta-llama--Meta-Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama--Meta-Llama-3.1-8B",
    "mixtral-8x7b": "mistralai--Mixtral-8x7B-v0.1",
    "qwen3-235b-a22b": "Qwen--Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen--Qwen3-30B-A3B",
    "qwen3-32b": "Qwen--Qwen3-32B",
}
DENSE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 512,
}  # fmt: skip


def shipped(name: str) -> ModelSpec:
    return load_model(MODELS / f"{name}.json")


def windowed(*layers: int | None) -> ModelSpec:
    """A model with these windows, one a layer."""
    kinds = ["full_attention" if w is None else "sliding_attention" for w in layers]
    window = next(w for w in layers if w is not None)
    config = DENSE | {"num_hidden_layers": len(layers), "layer_types": kinds}
    return model_from_config(config | {"sliding_window": window})


def test_every_shipped_model_is_listed() -> None:
    assert sorted(p.stem for p in MODELS.glob("*.json")) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_are_the_published_ones(name: str) -> None:
    assert parameters(shipped(name)) == pytest.approx(PUBLISHED[name], rel=1e-3)


@pytest.mark.parametrize("name", sorted(PEER))
def test_configs_say_what_aiconfigurator_s_copies_say(name: str) -> None:
    found = importlib.util.find_spec("aiconfigurator_core")
    if found is None or not found.submodule_search_locations:
        pytest.skip("aiconfigurator-core is not installed")
    folder = Path(found.submodule_search_locations[0]) / "model_configs"
    theirs = json.loads((folder / f"{PEER[name]}_config.json").read_text())
    ours = json.loads((MODELS / f"{name}.json").read_text())
    assert {k: v for k, v in ours.items() if theirs[k] != v} == {}


@pytest.mark.parametrize(
    ("name", "tp", "expected"),
    [
        ("llama-2-7b", 1, 2 * 32 * 128 * 32 * 2),
        ("llama-3.1-8b", 1, 131_072),
        ("llama-3.1-70b", 8, 2 * 1 * 128 * 80 * 2),
        ("qwen3-30b-a3b", 8, 2 * 1 * 128 * 48 * 2),  # 4 KV heads: replicated
        ("deepseek-v3", 8, 576 * 61 * 2),  # the latent is on every rank
    ],
)
def test_kv_bytes_per_token(name: str, tp: int, expected: int) -> None:
    model = shipped(name)
    assert model.kv_bytes_per_token(tp=tp) == expected
    assert model.kv_bytes_per_token("fp8", tp) * 2 == expected


def test_deepseek_has_dense_layers_first_a_shared_expert_and_a_latent_cache() -> None:
    model = shipped("deepseek-v3")
    assert model.moe is not None
    assert model.moe.layers == tuple(range(3, 61))
    assert (model.moe.experts, model.moe.top_k, model.moe.inter) == (256, 8, 2048)
    assert (model.moe.shared_inter, model.inter) == (2048, 18432)
    assert model.mla == MLASpec(512, 64, 128, 128, 1536)
    assert model.head_dim == 192
    lite = shipped("deepseek-v2-lite")
    assert lite.moe is not None
    assert lite.mla is not None
    assert (lite.moe_layers, lite.moe.shared_inter, lite.mla.q_lora_rank) == (26, 2816, None)


def test_qwen_experts_are_in_every_nth_layer_but_the_dense_ones() -> None:
    moe = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2}
    moe |= {"moe_intermediate_size": 32}
    spec = model_from_config(DENSE | moe | {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert spec.moe is not None
    assert spec.moe.layers == (1, 5)
    assert shipped("qwen3-30b-a3b").moe_layers == 48


def test_shared_expert_has_a_width_of_its_own() -> None:
    moe = shipped("qwen1.5-moe-a2.7b").moe
    assert moe is not None
    assert (moe.inter, moe.shared_inter) == (1408, 5632)


def test_gpt_oss_alternates_windows_also_without_layer_types() -> None:
    model = shipped("gpt-oss-20b")
    assert model.windows == (128, None) * 12
    assert model.kv_windows() == (128, None)
    assert [g.layers[:2] for g in model.kv_groups()] == [(0, 2), (1, 3)]
    config = json.loads((MODELS / "gpt-oss-20b.json").read_text())
    del config["layer_types"]
    assert model_from_config(config).windows == model.windows


def test_a_window_that_is_not_used_is_none() -> None:
    assert shipped("qwen2.5-7b").windows == (None,) * 28
    assert model_from_config(DENSE | {"sliding_window": 64}).kv_windows() == (64,)


@pytest.mark.parametrize(
    ("windows", "groups"),
    [
        ((64, None) * 13, [13, 13]),  # Gemma 2
        (((64,) * 5 + (None,)) * 10 + (64, 64), [9, 9, 9, 9, 8, 8, 10]),  # Gemma 3 27B
        ((64,) * 12 + (None,) * 13, [12, 13]),  # 13 < 1.5 x 12: one group of each
        ((64,) * 3 + (None,) * 2, [2, 1, 2]),  # 3 = 1.5 x 2: no longer
        ((None,) * 4 + (64,) * 20, [4, 4, 4, 4, 4, 4]),  # Llama 4's three to one, and more
    ],
)
def test_kv_groups_are_vllm_s(windows: tuple[int | None, ...], groups: list[int]) -> None:
    """The last of a kind may be short: vLLM pads it."""
    model = windowed(*windows)
    assert [len(g.layers) for g in model.kv_groups()] == groups
    dealt = sorted(layer for g in model.kv_groups() for layer in g.layers)
    assert dealt == list(range(len(windows)))
    assert all(model.windows[i] == g.window for g in model.kv_groups() for i in g.layers)


@pytest.mark.parametrize(
    ("given", "storage"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),  # its size is not known
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            "fp8",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
    ],
)
def test_storage_of_quantised_checkpoints(given: dict[str, Any], storage: str) -> None:
    assert model_from_config(DENSE | {"quantization_config": given}).quantization == storage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "lama"},
            "x.json: unknown model_type 'lama'; did you mean 'llama'? (known: deepseek_v2, "
            "deepseek_v3, gpt_oss, llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe)",
        ),
        (
            {"num_hidden_layers": None},
            "x.json: num_hidden_layers is missing, it must be a positive number",
        ),
        (
            {"hidden_size": "wide"},
            "x.json: hidden_size must be a whole number, got 'wide'",
        ),
        (
            {"num_experts": 4, "num_experts_per_tok": 8},
            "x.json: num_experts_per_tok 8 exceeds the 4 experts",
        ),
    ],
)
def test_faults_of_a_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_from_config(DENSE | change, "x.json")
    assert str(caught.value) == message


def test_faults_of_a_file(tmp_path: Path) -> None:
    missing, broken, listed = (tmp_path / n for n in ("no.json", "broken.json", "list.json"))
    broken.write_text("{")
    listed.write_text("[]")
    for path, message in (
        (missing, "no such model config"),
        (broken, "not JSON: Expecting property name enclosed in double quotes: line 1"),
        (listed, "expected the keys of a HF config.json"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_model(path)
        assert str(caught.value).startswith(f"{path}: {message}")
