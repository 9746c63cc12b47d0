"""Weights of a model: how many, and how many bytes of them one rank holds.

Matrices and norms are counted. Biases, attention sinks and norms of heads are not: below
0.1 % of every shipped model.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.deployment import Engine
from simulator.model import ModelSpec, dtype_bytes
from simulator.quantization import weight_format


@dataclass(frozen=True, slots=True)
class Weights:
    """Numbers of weights, by what quantisation does to them."""

    linear: int = 0  # projections of attention, dense MLPs and shared experts
    experts: int = 0
    kept: int = 0  # embeddings, routers and norms stay in the model's dtype

    def __add__(self, other: Weights) -> Weights:
        return Weights(
            self.linear + other.linear, self.experts + other.experts, self.kept + other.kept
        )

    @property
    def total(self) -> int:
        """All weights."""
        return self.linear + self.experts + self.kept


@dataclass(frozen=True, slots=True)
class Shard:
    """How the weights of a layer are split: over ``tp`` ranks, experts over ``expert_ranks``.

    Without expert parallelism every expert is split over all ranks of TP x DP, with it every
    rank has whole experts: the same number of weights (vLLM's ``FusedMoEParallelConfig``).
    """

    tp: int = 1
    expert_ranks: int = 1
    redundant_experts: int = 0


def parameters(model: ModelSpec) -> int:
    """Number of weights, embeddings included."""
    return _stage_weights(model, range(model.layers), Shard()).total


def weight_bytes(model: ModelSpec, engine: Engine, stage: range | None = None) -> int:
    """Bytes of weights on one rank of the pipeline stage that has the layers ``stage``."""
    layers = range(model.layers) if stage is None else stage
    tp = engine.tensor_parallel_size
    shard = Shard(tp, tp * engine.data_parallel_size, engine.num_redundant_experts)
    weights = _stage_weights(model, layers, shard)
    size = compute_bytes(model, engine)
    linear, experts = _bytes_each(model, engine)
    total = weights.linear * linear + weights.experts * experts + weights.kept * size
    if model.mla is not None and linear < size:
        # W_UK and W_UV, absorbed into the query and output, are kept dequantised as well
        up = model.mla.kv_lora_rank * (model.mla.nope_head_dim + model.mla.v_head_dim)
        total += up * model.heads // tp * len(layers) * size
    return int(total + _rope_table_bytes(model, size))


def ffn_weight_bytes(model: ModelSpec, engine: Engine, experts: int, *, first: bool) -> int:
    """Bytes of weights on one rank of an FFN cluster that holds ``experts`` of each layer.

    The ``first`` of the clusters has the dense MLPs and the shared experts too.
    """
    tp, whole = engine.tensor_parallel_size, engine.enable_expert_parallel
    linear, routed = _bytes_each(model, engine)
    total = 0.0
    if model.moe is not None:
        ranks = tp * engine.data_parallel_size if whole else tp
        copies = experts + engine.num_redundant_experts
        total += model.moe_layers * 3 * model.hidden * model.moe.inter * copies / ranks * routed
    if first:
        shared = model.moe_layers * model.moe.shared_inter if model.moe else 0
        width = shared + (model.layers - model.moe_layers) * model.inter
        total += 3 * model.hidden * width / tp * linear
    return int(total)


def _bytes_each(model: ModelSpec, engine: Engine) -> tuple[float, float]:
    """Bytes of a weight of a linear layer, and of an expert."""
    size = compute_bytes(model, engine)
    form = weight_format(model.quantization, engine.quantization)
    if form is None:
        return size, size
    return (size if form.experts_only else form.bits / 8), form.bits / 8


def compute_bytes(model: ModelSpec, engine: Engine) -> int:
    """Bytes per element of activations; vLLM runs float32 checkpoints in 16 bits by default."""
    if engine.dtype == "auto":
        return min(2, dtype_bytes(model.dtype))
    return dtype_bytes(engine.dtype)


def _stage_weights(model: ModelSpec, layers: range, shard: Shard) -> Weights:
    weights = Weights()
    for layer in layers:
        weights += _layer_weights(model, layer, shard)
    embedding = model.vocab * model.hidden // shard.tp
    first, last = 0 in layers, model.layers - 1 in layers
    copies = first + last - (model.tied_embeddings and first and last)
    return weights + Weights(kept=copies * embedding + last * model.hidden)


def _layer_weights(model: ModelSpec, layer: int, shard: Shard) -> Weights:
    hidden, moe = model.hidden, model.moe
    attention, norms = _attention(model, shard.tp), 2 * hidden
    if moe is None or layer not in moe.layers:
        return Weights(linear=attention + 3 * hidden * model.inter // shard.tp, kept=norms)
    experts = moe.experts + shard.redundant_experts
    return Weights(
        linear=attention + 3 * hidden * moe.shared_inter // shard.tp,
        experts=3 * hidden * moe.inter * experts // shard.expert_ranks,
        kept=norms + hidden * moe.experts,
    )


def _attention(model: ModelSpec, tp: int) -> int:
    """Projections of one layer on one rank; KV heads are replicated once TP exceeds them."""
    if model.mla is None:
        heads = model.heads // tp + max(1, model.kv_heads // tp)
        return 2 * model.hidden * model.head_dim * heads
    mla, heads = model.mla, model.heads // tp
    query = model.hidden * heads * model.head_dim
    if mla.q_lora_rank is not None:  # the down projections are on every rank
        query = mla.q_lora_rank * (model.hidden + heads * model.head_dim)
    down = model.hidden * (mla.kv_lora_rank + mla.rope_head_dim)
    up = mla.kv_lora_rank * heads * (mla.nope_head_dim + mla.v_head_dim)
    return query + down + up + heads * mla.v_head_dim * model.hidden


def _rope_table_bytes(model: ModelSpec, size: int) -> int:
    """Cosines and sines of every position, one table for all layers."""
    dim = model.mla.rope_head_dim if model.mla else model.head_dim
    return model.max_len * dim * size
