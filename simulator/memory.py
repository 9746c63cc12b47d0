"""KV capacity: taken from the capture, else computed as vLLM sizes its pool.

vLLM's rule (``v1/core/kv_cache_utils.py``): what ``gpu_memory_utilization`` grants, less
weights, peak activations and graphs, divided by the bytes of one block of all the layers
that share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.deployment import Engine
from simulator.model import ModelSpec, dtype_bytes
from traces.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """Blocks of one replica, the null block included, and where the number comes from."""

    blocks: int
    source: str  # "given" (deployment or capture) or "computed"
    detail: str = ""


def weight_bytes(model: ModelSpec, engine: Engine) -> int:
    """Bytes of weights on one rank (embeddings and layers split over TP and PP)."""
    size = dtype_bytes(engine.quantization or model.quantization or model.dtype)
    ranks = engine.tensor_parallel_size * engine.pipeline_parallel_size
    total = model.parameters()
    if model.moe is None or not engine.enable_expert_parallel:
        return int(total * size / ranks)
    routed = 3 * model.hidden * model.moe.inter * model.moe.experts * model.moe_layers
    expert_ranks = ranks * engine.data_parallel_size
    return int(((total - routed) / ranks + routed / expert_ranks) * size)


def activation_bytes(model: ModelSpec, engine: Engine) -> int:
    """Peak activations of one forward at the token budget, estimated.

    The residual stream, the widest projection and the logits of every sequence in fp32,
    as vLLM's profiling run meets them; it measures, we estimate.
    """
    size = dtype_bytes("bfloat16" if engine.dtype == "auto" else engine.dtype)
    tp = engine.tensor_parallel_size
    widest = max(2 * model.inter // tp, (model.heads + 2 * model.kv_heads) * model.head_dim // tp)
    if model.moe is not None:
        widest = max(widest, 2 * model.moe.inter * model.moe.top_k // tp)
    tokens = engine.max_num_batched_tokens
    return int(tokens * (3 * model.hidden + widest) * size + engine.max_num_seqs * model.vocab * 4)


def block_bytes(model: ModelSpec, engine: Engine) -> int:
    """Bytes of one pool block on one rank."""
    per_token = model.kv_bytes_per_token(engine.kv_cache_dtype, engine.tensor_parallel_size)
    share = model.layers_per_group() / model.layers / engine.pipeline_parallel_size
    return max(1, int(per_token * share * engine.block_size))


def kv_capacity(model: ModelSpec, engine: Engine, memory_gb: float | None, name: str) -> KVCapacity:
    """Blocks of a replica of cluster ``name``; ``memory_gb`` is the device's, in GB (1e9).

    Raises ConfigError if nothing is given to compute it from, or if the weights do not fit.
    """
    if engine.num_gpu_blocks is not None:
        return KVCapacity(engine.num_gpu_blocks, "given")
    where = f"clusters[{name}].engine.num_gpu_blocks"
    if memory_gb is None:
        raise ConfigError(f"{where}: needed, the hardware sheet names no device memory")
    granted = memory_gb * 1e9 * engine.gpu_memory_utilization
    weights, activations = weight_bytes(model, engine), activation_bytes(model, engine)
    left = granted - weights - activations
    detail = (
        f"{granted / 1e9:.1f} GB granted - {weights / 1e9:.1f} GB weights - "
        f"{activations / 1e9:.1f} GB activations"
    )
    blocks = int(left // block_bytes(model, engine))
    if blocks < 2:
        raise ConfigError(f"{where}: no KV block fits: {detail} = {left / 1e9:.1f} GB")
    return KVCapacity(blocks, "computed", detail)
