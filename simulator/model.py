"""What the simulator needs to know of a model, read once from its HF ``config.json``.

The only place where HF's key aliases live. Dense decoders (Llama, Qwen2/3, Mistral), MoE
(Mixtral, Qwen2/3-MoE, gpt-oss) and DeepSeek-V2/V3 (MLA) are known. The shipped
``traces/models/*.json`` hold the architecture keys of the public configs and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.quantization import checkpoint_format
from traces.errors import ConfigError, nearest

DTYPE_BYTES = {
    "float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "int8": 1,
}  # fmt: skip

KNOWN_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe",
    "deepseek_v2", "deepseek_v3", "gpt_oss",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MoESpec:
    """Routed experts; ``shared_inter`` is the width of the always-on expert, 0 if none.

    ``layers`` are the indices of the layers that have them; the others are dense.
    """

    experts: int
    top_k: int
    inter: int
    shared_inter: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MLASpec:
    """Multi-head latent attention: one compressed KV row per token."""

    kv_lora_rank: int
    rope_head_dim: int
    nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share a block table: all of one window, None for full attention."""

    window: int | None
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes of a decoder-only transformer; sizes in features, lengths in tokens."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    inter: int  # of a dense MLP
    vocab: int
    max_len: int
    dtype: str
    tied_embeddings: bool
    windows: tuple[int | None, ...]  # sliding window per layer, None for full attention
    moe: MoESpec | None = None
    mla: MLASpec | None = None
    quantization: str | None = None  # of the checkpoint: quantization.FORMATS

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return len(self.moe.layers) if self.moe else 0

    def kv_elements(self, tp: int = 1) -> int:
        """Numbers that one token caches in one layer on one rank.

        GQA: 2 x KV heads of the rank x head_dim (heads are replicated once TP exceeds their
        number). MLA: kv_lora_rank + rope_head_dim, on every rank.
        """
        if self.mla is not None:
            return self.mla.kv_lora_rank + self.mla.rope_head_dim
        return 2 * max(1, self.kv_heads // tp) * self.head_dim

    def kv_bytes_per_token(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """KV bytes one token takes on one rank, all layers together."""
        size = dtype_bytes(self.dtype if kv_dtype == "auto" else kv_dtype)
        return self.kv_elements(tp) * size * self.layers

    def kv_groups(self) -> tuple[KVGroup, ...]:
        """Groups of layers with a block table each; all groups draw on one pool.

        Layers of one kind are dealt in turn to groups of equal size: that of the rarer kind,
        or of the commoner one if it has less than 1.5 times as many layers
        (``kv_cache_utils._get_kv_cache_groups_uniform_page_size`` of vLLM 0.19 to 0.32).
        """
        kinds: dict[int | None, list[int]] = {}
        for layer, window in enumerate(self.windows):
            kinds.setdefault(window, []).append(layer)
        counts = [len(layers) for layers in kinds.values()]
        size = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
        return tuple(
            KVGroup(window, tuple(layers[first :: -(-len(layers) // size)]))
            for window, layers in kinds.items()
            for first in range(-(-len(layers) // size))
        )

    def kv_windows(self) -> tuple[int | None, ...]:
        """The window of each KV group."""
        return tuple(group.window for group in self.kv_groups())


def dtype_bytes(name: str) -> int:
    """Bytes per element of a dtype name; raises ConfigError if unknown."""
    key = name.removeprefix("torch.")
    if key not in DTYPE_BYTES:
        raise ConfigError(f"dtype {name!r} is unknown{nearest(key, DTYPE_BYTES)}")
    return DTYPE_BYTES[key]


def load_model(path: Path) -> ModelSpec:
    """Read a HF ``config.json``; raises ConfigError."""
    try:
        config = json.loads(path.read_text())
    except OSError:
        raise ConfigError(f"{path}: no such model config") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: expected the keys of a HF config.json")
    return model_from_config(config, str(path))


def model_from_config(config: Mapping[str, Any], source: str = "config.json") -> ModelSpec:
    """Read HF config keys; ``source`` names the file in errors. Raises ConfigError."""
    quantization = checkpoint_format(config.get("quantization_config"))
    config = config.get("text_config") or config
    model_type = str(config.get("model_type", ""))
    if model_type not in KNOWN_TYPES:
        raise ConfigError(
            f"{source}: unknown model_type {model_type!r}{nearest(model_type, KNOWN_TYPES)}"
        )
    keys = _Keys(config, source)
    layers, heads = keys.need("num_hidden_layers"), keys.need("num_attention_heads")
    hidden, mla = keys.need("hidden_size"), _mla(keys)
    return ModelSpec(
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=keys.get("num_key_value_heads") or heads,
        head_dim=mla.nope_head_dim + mla.rope_head_dim
        if mla
        else keys.get("head_dim") or hidden // heads,
        inter=keys.need("intermediate_size", "moe_intermediate_size"),
        vocab=keys.need("vocab_size"),
        max_len=keys.need("max_position_embeddings"),
        dtype=str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(config, layers),
        moe=_moe(keys, layers),
        mla=mla,
        quantization=quantization,
    )


class _Keys:
    """Whole numbers of a config, with errors that name the file and the key."""

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config, self.source = config, source

    def get(self, key: str) -> int:
        """The number under ``key``, 0 if it is missing or null; raises ConfigError."""
        value = self.config.get(key) or 0
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{self.source}: {key} must be a whole number, got {value!r}")
        return value

    def need(self, key: str, *aliases: str) -> int:
        """The number under the first of the keys that has one; raises ConfigError if none."""
        for name in (key, *aliases):
            if value := self.get(name):
                return value
        raise ConfigError(f"{self.source}: {key} is missing, it must be a positive number")


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return (None,) * layers
    types = config.get("layer_types")
    if types:
        return tuple(window if t == "sliding_attention" else None for t in types)
    if config.get("model_type") == "gpt_oss":
        return tuple(window if i % 2 == 0 else None for i in range(layers))
    return (window,) * layers


def _moe(keys: _Keys, layers: int) -> MoESpec | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((n for name in names if (n := keys.get(name))), 0)
    if experts <= 1:
        return None
    top_k = keys.need("num_experts_per_tok", "experts_per_token")
    if top_k > experts:
        raise ConfigError(
            f"{keys.source}: num_experts_per_tok {top_k} exceeds the {experts} experts"
        )
    inter = keys.need("moe_intermediate_size", "intermediate_size")
    shared = keys.get("shared_expert_intermediate_size") or inter * keys.get("n_shared_experts")
    return MoESpec(experts, top_k, inter, shared, _moe_layers(keys, layers))


def _moe_layers(keys: _Keys, layers: int) -> tuple[int, ...]:
    # Qwen: every decoder_sparse_step-th layer, the last of each step, but mlp_only_layers;
    # DeepSeek: every moe_layer_freq-th from first_k_dense_replace on, the first of each
    step, freq = keys.get("decoder_sparse_step") or 1, keys.get("moe_layer_freq") or 1
    dense = keys.config.get("mlp_only_layers") or ()
    first = keys.get("first_k_dense_replace")
    return tuple(
        i for i in range(first, layers) if (i + 1) % step == 0 and i % freq == 0 and i not in dense
    )


def _mla(keys: _Keys) -> MLASpec | None:
    if not keys.get("kv_lora_rank"):
        return None
    return MLASpec(
        kv_lora_rank=keys.need("kv_lora_rank"),
        rope_head_dim=keys.need("qk_rope_head_dim"),
        nope_head_dim=keys.need("qk_nope_head_dim"),
        v_head_dim=keys.need("v_head_dim"),
        q_lora_rank=keys.get("q_lora_rank") or None,
    )
