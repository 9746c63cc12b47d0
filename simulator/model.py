"""What the simulator needs to know of a model, read once from its HF ``config.json``.

The only place where HF's key aliases live. Dense decoders (Llama, Qwen2/3, Mistral), MoE
(Mixtral, Qwen2/3-MoE, gpt-oss) and DeepSeek-V2/V3 (MLA) are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traces.errors import ConfigError, nearest

DTYPE_BYTES = {
    "float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1,
    "mxfp4": 0.5, "nvfp4": 0.5, "int8": 1, "int4": 0.5, "awq": 0.5, "gptq": 0.5,
}  # fmt: skip

KNOWN_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen2_moe", "qwen3_moe",
    "deepseek_v2", "deepseek_v3", "gpt_oss",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MoESpec:
    """Routed experts of a layer; ``shared_inter`` is the width of the always-on expert, 0 if none."""

    experts: int
    top_k: int
    inter: int
    shared_inter: int = 0
    first_dense_layers: int = 0
    period: int = 1  # every period-th layer is MoE, the others dense


@dataclass(frozen=True, slots=True)
class MLASpec:
    """Multi-head latent attention: one compressed KV row per token."""

    kv_lora_rank: int
    rope_head_dim: int
    nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shapes of a decoder-only transformer; sizes in features, lengths in tokens."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    vocab: int
    max_len: int
    dtype: str
    tied_embeddings: bool
    windows: tuple[int | None, ...]  # sliding window per layer, None for full attention
    moe: MoESpec | None = None
    mla: MLASpec | None = None
    quantization: str | None = None

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        if self.moe is None:
            return 0
        later = self.layers - self.moe.first_dense_layers
        return later // self.moe.period

    def kv_bytes_per_token(self, kv_dtype: str = "auto", tp: int = 1) -> int:
        """KV bytes one token takes on one rank, all layers together.

        GQA: 2 x KV heads of the rank x head_dim x layers (heads are replicated once TP
        exceeds their number). MLA: (kv_lora_rank + rope_head_dim) x layers, on every rank.
        """
        size = dtype_bytes(self.dtype if kv_dtype == "auto" else kv_dtype)
        if self.mla is not None:
            per_layer: float = (self.mla.kv_lora_rank + self.mla.rope_head_dim) * size
        else:
            per_layer = 2 * max(1, self.kv_heads // tp) * self.head_dim * size
        return int(per_layer * self.layers)

    def kv_windows(self) -> tuple[int | None, ...]:
        """One entry per KV group: the window of its layers (vLLM's group split).

        Layers of one kind form groups of equal size, the size being the smallest number
        of layers of a kind (``kv_cache_utils._get_kv_cache_groups_uniform_page_size``).
        """
        kinds: dict[int | None, int] = {}
        for window in self.windows:
            kinds[window] = kinds.get(window, 0) + 1
        smallest = min(kinds.values())
        largest = max(kinds.values())
        size = largest if largest < smallest * 1.25 else smallest
        return tuple(w for w, count in kinds.items() for _ in range(-(-count // size)))

    def layers_per_group(self) -> int:
        """Layers that share one KV block of the pool."""
        return -(-self.layers // len(self.kv_windows()))

    def parameters(self) -> int:
        """Number of weights, embeddings included."""
        attention = self._attention_parameters() * self.layers
        dense_mlp = 3 * self.hidden * self.inter
        if self.moe is None:
            mlp = dense_mlp * self.layers
        else:
            moe = self.moe
            expert_layer = (
                3 * self.hidden * (moe.inter * moe.experts + moe.shared_inter)
                + self.hidden * moe.experts
            )
            mlp = expert_layer * self.moe_layers + dense_mlp * (self.layers - self.moe_layers)
        norms = (2 * self.layers + 1) * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied_embeddings else 2)
        return attention + mlp + norms + embeddings

    def _attention_parameters(self) -> int:
        if self.mla is None:
            return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mla = self.mla
        q_dim = self.heads * (mla.nope_head_dim + mla.rope_head_dim)
        rank = mla.q_lora_rank
        query = self.hidden * q_dim if rank is None else rank * (self.hidden + q_dim)
        down = self.hidden * (mla.kv_lora_rank + mla.rope_head_dim)
        up = mla.kv_lora_rank * self.heads * (mla.nope_head_dim + mla.v_head_dim)
        return query + down + up + self.heads * mla.v_head_dim * self.hidden


def dtype_bytes(name: str) -> float:
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
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    return model_from_config(config, str(path))


def model_from_config(config: Mapping[str, Any], source: str = "config.json") -> ModelSpec:
    """Read HF config keys; ``source`` names the file in errors. Raises ConfigError."""
    config = config.get("text_config") or config
    model_type = str(config.get("model_type", ""))
    if model_type not in KNOWN_TYPES:
        raise ConfigError(f"{source}: model_type {model_type!r}{nearest(model_type, KNOWN_TYPES)}")

    def need(key: str, *aliases: str) -> int:
        for name in (key, *aliases):
            value = config.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        raise ConfigError(f"{source}: {key} must be a positive number, got {config.get(key)!r}")

    layers, hidden = need("num_hidden_layers"), need("hidden_size")
    heads = need("num_attention_heads")
    head_dim = config.get("head_dim") or hidden // heads
    quantization = (config.get("quantization_config") or {}).get("quant_method")
    return ModelSpec(
        model_type=model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        inter=need("intermediate_size", "moe_intermediate_size"),
        vocab=need("vocab_size"),
        max_len=need("max_position_embeddings"),
        dtype=str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        windows=_windows(config, layers),
        moe=_moe(config, need),
        mla=_mla(config, need),
        quantization=quantization,
    )


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


def _moe(config: Mapping[str, Any], need: Any) -> MoESpec | None:
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((config[n] for n in names if config.get(n)), 0)
    if experts <= 1:
        return None
    top_k = need("num_experts_per_tok", "experts_per_token")
    if top_k > experts:
        raise ConfigError(f"num_experts_per_tok {top_k} exceeds the {experts} experts")
    inter = need("moe_intermediate_size", "intermediate_size")
    shared = config.get("shared_expert_intermediate_size") or inter * (
        config.get("n_shared_experts") or 0
    )
    period = config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1
    return MoESpec(
        experts, top_k, inter, shared, config.get("first_k_dense_replace") or 0, period
    )


def _mla(config: Mapping[str, Any], need: Any) -> MLASpec | None:
    if not config.get("kv_lora_rank"):
        return None
    return MLASpec(
        kv_lora_rank=need("kv_lora_rank"),
        rope_head_dim=need("qk_rope_head_dim"),
        nope_head_dim=need("qk_nope_head_dim"),
        v_head_dim=need("v_head_dim"),
        q_lora_rank=config.get("q_lora_rank"),
    )
