"""KV groups, block sizes, stages and graph sizes against the functions of a real vLLM."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from simulator.deployment import SHIPPED, Engine
from simulator.kv.groups import Group
from simulator.memory import block_bytes, pipeline_stages
from simulator.model import ModelSpec, load_model, model_from_config

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]
pytest.importorskip("vllm")

BLOCK = 16
MODELS = sorted(p.stem for p in (SHIPPED / "traces" / "models").glob("*.json"))


def random_model(rng: random.Random) -> ModelSpec:
    """Any mix of full attention and one window."""
    windows = [rng.choice((64, None)) for _ in range(rng.randint(2, 48))]
    config = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": len(windows), "num_attention_heads": 8, "num_key_value_heads": 2,
        "vocab_size": 100, "max_position_embeddings": 512, "sliding_window": 64,
        "layer_types": ["sliding_attention" if w else "full_attention" for w in windows],
    }  # fmt: skip
    return model_from_config(config)


def vllm_specs(model: ModelSpec, tp: int) -> dict[str, object]:
    """vLLM's own KV cache spec of each layer on a rank."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec

    specs: dict[str, object] = {}
    for layer, window in enumerate(model.windows):
        shape = {
            "block_size": BLOCK, "num_kv_heads": max(1, model.kv_heads // tp),
            "head_size": model.head_dim, "dtype": torch.bfloat16,
        }  # fmt: skip
        if model.mla is not None:
            latent = model.mla.kv_lora_rank + model.mla.rope_head_dim
            spec = MLAAttentionSpec(**shape | {"num_kv_heads": 1, "head_size": latent})
        elif window is not None:
            spec = SlidingWindowSpec(**shape, sliding_window=window)
        else:
            spec = FullAttentionSpec(**shape)
        specs[str(layer)] = spec
    return specs


def vllm_groups(model: ModelSpec, tp: int = 1) -> list[object]:
    from vllm.v1.core import kv_cache_utils as utils

    specs = vllm_specs(model, tp)
    if utils.is_kv_cache_spec_uniform(specs):
        return utils._get_kv_cache_groups_uniform_spec(specs)
    return utils._get_kv_cache_groups_uniform_page_size(specs)


def test_groups_of_layers() -> None:
    rng = random.Random(7)
    shapes = set()
    for model in [random_model(rng) for _ in range(300)]:
        theirs = [tuple(int(n) for n in g.layer_names) for g in vllm_groups(model)]
        assert [g.layers for g in model.kv_groups()] == theirs, model.windows
        shapes.add(len(theirs))
    assert len(shapes) > 5  # patterns of many kinds were met


@pytest.mark.parametrize("tp", [1, 8])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_of_a_block(name: str, tp: int) -> None:
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_bytes_per_block
    from vllm.v1.kv_cache_layout import KVCacheLayout

    model = load_model(SHIPPED / "traces" / "models" / f"{name}.json")
    expected = _get_kv_cache_bytes_per_block(vllm_groups(model, tp), KVCacheLayout.LBNHC)
    engine = Engine(tensor_parallel_size=tp, block_size=BLOCK, dtype="bfloat16")
    assert block_bytes(model, engine) == expected


def test_blocks_of_the_longest_request() -> None:
    rng = random.Random(8)
    for _ in range(300):
        model, length, in_flight = random_model(rng), rng.randint(1, 5000), rng.randint(1, 9000)
        config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=length),
            parallel_config=SimpleNamespace(decode_context_parallel_size=1),
            max_in_flight_tokens=in_flight,
        )
        for ours, theirs in zip(model.kv_groups(), vllm_groups(model), strict=True):
            spec = theirs.kv_cache_spec
            expected = spec.max_memory_usage_bytes(config) // spec.page_size_bytes
            assert Group(BLOCK, ours.window).admission_cap(in_flight, length) == expected


def test_layers_of_pipeline_stages() -> None:
    from vllm.distributed.utils import get_pp_indices

    for layers in range(1, 100):
        for stages in range(1, min(layers, 16) + 1):
            expected = [range(*get_pp_indices(layers, r, stages)) for r in range(stages)]
            assert pipeline_stages(layers, stages) == expected


def test_sizes_of_cuda_graphs() -> None:
    from vllm.config import VllmConfig
    from vllm.config.compilation import CUDAGraphMode

    for seqs in (1, 2, 3, 5, 8, 31, 64, 100, 128, 200, 256, 300, 512, 1024):
        for budget in (seqs, seqs + 1, 512, 2048):
            engine = Engine(max_num_seqs=seqs, max_num_batched_tokens=budget)
            compilation = SimpleNamespace(
                cudagraph_mode=CUDAGraphMode.FULL_AND_PIECEWISE, cudagraph_capture_sizes=None,
                max_cudagraph_capture_size=None, post_init_cudagraph_sizes=lambda: None,
                pass_config=SimpleNamespace(enable_sp=False),
            )  # fmt: skip
            config = SimpleNamespace(
                model_config=SimpleNamespace(enforce_eager=False),
                compilation_config=compilation, performance_mode="balanced",
                scheduler_config=SimpleNamespace(
                    max_num_seqs=seqs, max_num_batched_tokens=budget
                ),
                parallel_config=SimpleNamespace(tensor_parallel_size=1),
                uniform_decode_query_len=1, speculative_config=None,
            )  # fmt: skip
            VllmConfig._set_cudagraph_sizes(config)
            expected = tuple(compilation.cudagraph_capture_sizes)
            assert engine.graph_sizes() == expected, (seqs, budget)
