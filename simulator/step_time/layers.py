"""The operators of one step on one rank: family, shape and how many, from the model.

A decoder layer of GQA, tensor-parallel over t ranks (vLLM's fused projections)::

    norm -> qkv_proj -> [qk_norm] -> rotary -> kv_write -> attention -> o_proj -> all_reduce
    norm -> gate_up_proj -> act_fn -> down_proj -> all_reduce                     (dense)
    norm -> router -> grouped_gemm (+ shared expert) -> all_reduce                (MoE)

With data-parallel ranks the experts, split over all TP x DP ranks, take the tokens of all
(vLLM's ``all2all_backend``)::

    norm -> router -> dispatch -> grouped_gemm -> combine [-> all_gather or all_reduce over TP]

``allgather_reducescatter`` (vLLM's default; ``distributed/device_communicators/all2all.py``):
every rank gets the tokens of all (all_gather) and adds up what all made of its own
(reduce_scatter), whatever the experts' loads are. Over all TP x DP ranks where experts are
whole and TP > 1 (each TP rank a part of the tokens, gathered over TP in the end), else over
the DP ranks. The others send a token to the ranks of its experts only (all_to_all).

then the final norm, lm_head over the rows that sample (vocabulary split over t) and the
sampler. With MLA the projections are q_a, q_b (or q), kv_a and o; W_UK and W_UV are part of
the attention kernel's inputs (kv_b).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from simulator.deployment import Engine
from simulator.model import MLASpec, ModelSpec, MoESpec

Rows = Literal["tokens", "sampled", "engine"]
TOKENS: Rows = "tokens"
SAMPLED: Rows = "sampled"
ENGINE: Rows = "engine"  # tokens of all ranks that step together
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
AGRS = "allgather_reducescatter"
# backends that send tokens to their experts; bytes of an activation sent to an expert
ALL_TO_ALL = (
    "deepep_high_throughput", "deepep_low_latency", "deepep_v2", "flashinfer_all2allv",
    "flashinfer_nvlink_one_sided", "flashinfer_nvlink_two_sided", "mori_high_throughput",
    "mori_low_latency", "nixl_ep", "pplx",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """One operator, run ``count`` times in a step.

    ``family`` and the keys of ``shape`` are those of the ``kernels`` table. ``rows`` says what
    its size grows with: the tokens of the step, the rows that sample, or the tokens of all
    ranks that step together. For collectives ``shape`` holds ``bytes`` per row, and ``span``
    is how many consecutive devices their ranks spread over. With up to ``beside`` tokens a GPU
    runs it on a second stream, beside what takes longer.
    """

    family: str
    layer: str
    rows: Rows
    shape: dict[str, int] = field(default_factory=dict)
    count: int = 1
    span: int = 0
    beside: int = 0


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """The attention of ``count`` layers: ``window`` in tokens, 0 for full attention."""

    family: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    count: int


def attention_calls(model: ModelSpec, tp: int) -> list[AttentionCall]:
    """Attention kernels of a step on one rank, one entry per window."""
    heads, kv_heads = model.heads // tp, max(1, model.kv_heads // tp)
    if model.mla is not None:
        width = model.mla.kv_lora_rank + model.mla.rope_head_dim
        return [AttentionCall("mla", heads, 1, width, 0, model.layers)]
    counts: dict[int, int] = {}
    for window in model.windows:
        counts[window or 0] = counts.get(window or 0, 0) + 1
    return [
        AttentionCall("gqa", heads, kv_heads, model.head_dim, window, count)
        for window, count in counts.items()
    ]


def calls(model: ModelSpec, engine: Engine) -> list[Call]:
    """All operators of a step but attention, on one tensor-parallel rank."""
    tp = engine.tensor_parallel_size
    return [
        Call("elementwise", "embedding", TOKENS, {"hidden": model.hidden}),
        *_attention_block(model, tp),
        *_mlp_blocks(model, engine),
        Call("elementwise", "final_layernorm", TOKENS, {"hidden": model.hidden}),
        Call("linear", "lm_head", SAMPLED, {"n": -(-model.vocab // tp), "k": model.hidden}),
        *_gather_logits(model, tp),
        Call("sampling", "sampler", SAMPLED, {"hidden": model.vocab}),
    ]


def hops(model: ModelSpec, engine: Engine) -> list[Call]:
    """What goes from each pipeline stage to the next: hidden states and residual.

    Each tensor-parallel rank sends its share (``send_tensor_dict`` with the TP group). Stages
    are consecutive groups of TP ranks.
    """
    tp, stages = engine.tensor_parallel_size, engine.pipeline_parallel_size
    size = -(-2 * 2 * model.hidden // tp)
    return [
        Call("send_recv", "stage_hop", TOKENS, {"bytes": size, "ranks": 2}, span=tp * stage)
        for stage in range(1, stages)
    ]


def _attention_block(model: ModelSpec, tp: int) -> Iterator[Call]:
    hidden, layers = model.hidden, model.layers
    yield Call("elementwise", "layernorm", TOKENS, {"hidden": hidden}, layers)
    if model.mla is not None:
        yield from _mla_projections(model, model.mla, tp)
        out = model.heads // tp * model.mla.v_head_dim
    else:
        q, kv = model.heads // tp, max(1, model.kv_heads // tp)
        out = q * model.head_dim
        width = (q + 2 * kv) * model.head_dim
        yield Call("linear", "qkv_proj", TOKENS, {"n": width, "k": hidden}, layers)
        rotated = (q + kv) * model.head_dim
        if model.model_type in ("qwen3", "qwen3_moe"):
            yield Call("elementwise", "qk_norm", TOKENS, {"hidden": rotated}, layers)
        yield Call("elementwise", "rotary_emb", TOKENS, {"hidden": rotated}, layers)
    yield Call("elementwise", "kv_write", TOKENS, {"hidden": model.kv_elements(tp)}, layers)
    yield Call("linear", "o_proj", TOKENS, {"n": hidden, "k": out}, layers)
    yield from _all_reduce(model, tp, layers)


def _mla_projections(model: ModelSpec, mla: MLASpec, tp: int) -> Iterator[Call]:
    hidden, layers = model.hidden, model.layers
    q_width = model.heads // tp * (mla.nope_head_dim + mla.rope_head_dim)
    kv_width = mla.kv_lora_rank + mla.rope_head_dim
    if mla.q_lora_rank is None:
        yield Call("linear", "q_proj", TOKENS, {"n": q_width, "k": hidden}, layers)
        yield Call("linear", "kv_a_proj", TOKENS, {"n": kv_width, "k": hidden}, layers)
    else:
        down = mla.q_lora_rank + kv_width
        yield Call("linear", "fused_qkv_a_proj", TOKENS, {"n": down, "k": hidden}, layers)
        yield Call("linear", "q_b_proj", TOKENS, {"n": q_width, "k": mla.q_lora_rank}, layers)
    yield Call("elementwise", "rotary_emb", TOKENS, {"hidden": q_width}, layers)


def _mlp_blocks(model: ModelSpec, engine: Engine) -> Iterator[Call]:
    tp = engine.tensor_parallel_size
    dense = model.layers - model.moe_layers
    yield Call("elementwise", "layernorm", TOKENS, {"hidden": model.hidden}, model.layers)
    if dense:
        yield from _gated_mlp(model.hidden, model.inter // tp, dense)
        yield from _all_reduce(model, tp, dense)
    if model.moe is not None:
        moe, layers = model.moe, model.moe_layers
        experts = {"experts": moe.experts, "hidden": model.hidden}
        yield Call("router", "gate", TOKENS, experts, layers)
        yield from _experts(model, moe, engine)
        if moe.shared_inter:
            shared = _gated_mlp(model.hidden, moe.shared_inter // tp, layers)
            yield from (replace(call, beside=_shared_beside(engine)) for call in shared)


def _shared_beside(engine: Engine) -> int:
    """Tokens up to which shared experts run beside the routed ones.

    vLLM's ``fused_moe/runner/shared_experts.py`` and VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD.
    """
    backend = engine.all2all_backend
    alone = backend == "flashinfer_nvlink_two_sided" or (
        engine.enable_eplb and backend not in (AGRS, "deepep_v2", "flashinfer_nvlink_one_sided")
    )
    return 0 if alone else 256


def _experts(model: ModelSpec, moe: MoESpec, engine: Engine) -> Iterator[Call]:
    tp, dp = engine.tensor_parallel_size, engine.data_parallel_size
    whole, layers = engine.enable_expert_parallel, model.moe_layers
    split, ep = (1, tp * dp) if whole else (tp * dp, 1)
    shape = {
        "experts": moe.experts, "local_experts": moe.experts // ep, "top_k": moe.top_k,
        "hidden": model.hidden, "inter": moe.inter, "tp": split, "ep": ep,
    }  # fmt: skip
    if dp == 1:
        yield Call("grouped_gemm", "experts", ENGINE, shape, layers)
        yield from _all_reduce(model, tp, layers)
        return
    wide = 2 * model.hidden  # activations in 16 bits
    chosen = 8 * moe.top_k  # and, with each token, its experts and their weights
    apart = whole and tp > 1  # every TP rank has a part of the tokens
    ranks = tp * dp if apart else dp
    agrs = engine.all2all_backend == AGRS
    if agrs:
        there = {"bytes": wide + chosen, "ranks": ranks}
        yield Call("all_gather", "dispatch", ENGINE, there, layers, span=tp * dp)
    else:
        there = {"bytes": wide, "ranks": ranks, "top_k": moe.top_k}
        yield Call("all_to_all", "dispatch", ENGINE, there, layers, span=tp * dp)
    yield Call("grouped_gemm", "experts", ENGINE, shape, layers)
    back = {"bytes": wide, "ranks": ranks} | ({} if agrs else {"top_k": moe.top_k})
    family = "reduce_scatter" if agrs else "all_to_all"
    yield Call(family, "combine", ENGINE, back, layers, span=tp * dp)
    if apart:
        yield Call("all_gather", "restore", TOKENS, {"bytes": wide, "ranks": tp}, layers, span=tp)
    elif tp > 1:
        yield from _all_reduce(model, tp, layers)


def _gated_mlp(hidden: int, inter: int, layers: int) -> Iterator[Call]:
    yield Call("linear", "gate_up_proj", TOKENS, {"n": 2 * inter, "k": hidden}, layers)
    yield Call("elementwise", "act_fn", TOKENS, {"hidden": inter}, layers)
    yield Call("linear", "down_proj", TOKENS, {"n": hidden, "k": inter}, layers)


def _all_reduce(model: ModelSpec, tp: int, layers: int) -> Iterator[Call]:
    if tp > 1:
        size = 2 * model.hidden  # activations in 16 bits
        shape = {"bytes": size, "ranks": tp}
        yield Call("all_reduce", "all_reduce", TOKENS, shape, layers, span=tp)


def _gather_logits(model: ModelSpec, tp: int) -> Iterator[Call]:
    if tp > 1:
        shape = {"bytes": 2 * model.vocab, "ranks": tp}
        yield Call("all_gather", "logits", SAMPLED, shape, span=tp)


@dataclass(frozen=True, slots=True)
class StageCalls:
    """Operators of one layer where attention and FFN are different ranks; counts are 1.

    ``attention`` without the attention kernel; ``gate`` follows it in MoE layers. ``opening``
    and ``closing`` run once a micro-batch, on the attention ranks.
    """

    attention: tuple[Call, ...]
    gate: tuple[Call, ...]
    dense: tuple[Call, ...]
    shared: tuple[Call, ...]
    opening: tuple[Call, ...]
    closing: tuple[Call, ...]


def stage_calls(model: ModelSpec, attention: Engine, ffn: Engine) -> StageCalls:
    """The operators of ``calls`` but the routed experts, by the rank that runs them.

    The norm before the MLP and the router stay with attention, which sends normed tokens.
    """
    tp, ffn_tp, hidden = attention.tensor_parallel_size, ffn.tensor_parallel_size, model.hidden
    norm = Call("elementwise", "layernorm", TOKENS, {"hidden": hidden})
    gate: tuple[Call, ...] = ()
    shared: tuple[Call, ...] = ()
    if model.moe is not None:
        shape = {"experts": model.moe.experts, "hidden": hidden}
        gate = (Call("router", "gate", TOKENS, shape),)
        if model.moe.shared_inter:
            shared = tuple(_gated_mlp(hidden, model.moe.shared_inter // ffn_tp, 1))
    whole = calls(model, attention)
    return StageCalls(
        attention=(*(replace(call, count=1) for call in _attention_block(model, tp)), norm),
        gate=gate,
        dense=(*_gated_mlp(hidden, model.inter // ffn_tp, 1), *_all_reduce(model, ffn_tp, 1)),
        shared=shared,
        opening=tuple(call for call in whole if call.layer == "embedding"),
        closing=tuple(
            call for call in whole if call.rows == SAMPLED or call.layer == "final_layernorm"
        ),
    )
