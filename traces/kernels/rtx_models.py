"""The models that LLMServingSim profiled, and the layers of one of their ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions from the model's public config.json; ``inter`` of one expert where MoE."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int
    experts: int = 0
    top_k: int = 0


MODELS = {
    "meta-llama/Llama-3.1-8B": Shape(4096, 32, 8, 128, 14336, 128256),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Shape(2048, 32, 4, 128, 768, 151936, 128, 8),
}


def layers_of(shape: Shape, tp: int) -> dict[str, tuple[str, dict[str, int]]]:
    """The operator and width of each layer on one of ``tp`` ranks."""
    heads = shape.heads // tp * shape.head_dim
    kv = max(1, shape.kv_heads // tp) * shape.head_dim
    inter, vocab = shape.inter // tp, shape.vocab // tp
    full_qk = (shape.heads + shape.kv_heads) * shape.head_dim
    linear = {
        "qkv_proj": {"n": heads + 2 * kv, "k": shape.hidden},
        "o_proj": {"n": shape.hidden, "k": heads},
        "gate_up_proj": {"n": 2 * inter, "k": shape.hidden},
        "down_proj": {"n": shape.hidden, "k": inter},
        "lm_head": {"n": vocab, "k": shape.hidden},
    }
    elementwise = {
        "embedding": shape.hidden,
        "layernorm": shape.hidden,
        "final_layernorm": shape.hidden,
        "qk_norm": full_qk,
        "rotary_emb": heads + kv,
        "act_fn": inter,
    }
    return {
        **{name: ("linear", size) for name, size in linear.items()},
        **{name: ("elementwise", {"hidden": size}) for name, size in elementwise.items()},
        "sampler": ("sampling", {"hidden": shape.vocab}),
    }
