"""The decoder, split where attention and FFN part: what each process computes.

A layer, for n tokens of hidden size h (Qwen3-MoE)::

    attention   x += o(attention(rope(norm(qkv(norm(x))))))      then norm, router
    FFN         y = sum over the token's experts of w_e down_e(silu(gate_e x) * up_e x)
    attention   x += y                                           at the next layer's start
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, silu

from replay.af_testbed.shape import ModelShape

EPSILON = 1e-6
ROPE_THETA = 10_000.0
GATE_SCALE = 2.0  # random routers of unit scale load all experts alike


@dataclass(slots=True)
class AttentionWeights:
    """A layer's weights outside the experts; matrices are ``(out, in)``."""

    qkv: Tensor
    out: Tensor
    gate: Tensor

    def copy(self) -> AttentionWeights:
        return AttentionWeights(self.qkv.clone(), self.out.clone(), self.gate.clone())


@dataclass(slots=True)
class ExpertWeights:
    """A layer's local experts: ``(experts, 2 inter, hidden)`` and ``(experts, hidden, inter)``."""

    gate_up: Tensor
    down: Tensor

    def copy(self) -> ExpertWeights:
        return ExpertWeights(self.gate_up.clone(), self.down.clone())


def _normal(seed: int, place: int, *shape: int) -> Tensor:
    """Random weights of unit gain, the same in every process that makes them."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + place)
    return torch.randn(*shape, generator=generator) / shape[-1] ** 0.5


def attention_weights(shape: ModelShape, layer: int) -> AttentionWeights:
    """The layer's projections and router."""
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    place = 10_000 * (layer + 1)
    return AttentionWeights(
        _normal(shape.seed, place, rows, shape.hidden),
        _normal(shape.seed, place + 1, shape.hidden, shape.heads * shape.head_dim),
        GATE_SCALE * _normal(shape.seed, place + 2, shape.experts, shape.hidden),
    )


def expert_weights(shape: ModelShape, layer: int, experts: range) -> ExpertWeights:
    """The layer's experts in ``experts``."""
    place = 10_000 * (layer + 1) + 10
    hidden, inter = shape.hidden, shape.inter
    gate_up = [_normal(shape.seed, place + 2 * e, 2 * inter, hidden) for e in experts]
    down = [_normal(shape.seed, place + 2 * e + 1, hidden, inter) for e in experts]
    return ExpertWeights(torch.stack(gate_up), torch.stack(down))


def embedding(shape: ModelShape) -> Tensor:
    """``(vocab, hidden)``, of unit variance."""
    return _normal(shape.seed, 1, shape.vocab, shape.hidden) * shape.hidden**0.5


def head(shape: ModelShape) -> Tensor:
    """``(vocab, hidden)``."""
    return _normal(shape.seed, 2, shape.vocab, shape.hidden)


def local_experts(shape: ModelShape, rank: int, ranks: int) -> range:
    """Experts of an FFN rank: blocks in order, as vLLM's linear placement."""
    each = shape.experts // ranks
    return range(rank * each, (rank + 1) * each)


def rope_table(shape: ModelShape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines by position, ``(length, head_dim / 2)`` each."""
    half = shape.head_dim // 2
    steps = ROPE_THETA ** (-torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * steps[None, :]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of ``(..., heads, head_dim)``, cos and sin ``(..., 1, head_dim / 2)``."""
    low, high = x.chunk(2, -1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], -1)


def project(
    shape: ModelShape, weights: AttentionWeights, x: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of tokens ``(..., hidden)``, each ``(..., heads, head_dim)``."""
    rows = rms_norm(x, (shape.hidden,), eps=EPSILON) @ weights.qkv.T
    rows = rows.unflatten(-1, (-1, shape.head_dim))
    q, k, v = rows.split([shape.heads, shape.kv_heads, shape.kv_heads], -2)
    q = rotate(rms_norm(q, (shape.head_dim,), eps=EPSILON), cos, sin)
    k = rotate(rms_norm(k, (shape.head_dim,), eps=EPSILON), cos, sin)
    return q, k, v


def attend(shape: ModelShape, q: Tensor, k: Tensor, v: Tensor, hidden_from: Tensor) -> Tensor:
    """Attention of ``q (n, queries, heads, d)`` over the cache ``k, v (n, kv_heads, t, d)``.

    ``hidden_from (n, queries)``: the position from which on a query sees nothing. Returns
    ``(n, queries, heads d)``.
    """
    n, queries = q.shape[:2]
    group = shape.heads // shape.kv_heads
    q = q.view(n, queries, shape.kv_heads, group, shape.head_dim).permute(0, 2, 3, 1, 4)
    q = q.reshape(n, shape.kv_heads, group * queries, shape.head_dim) * shape.head_dim**-0.5
    scores = q @ k.transpose(-1, -2)
    unseen = torch.arange(k.shape[2])[None, None, :] >= hidden_from[:, :, None]
    scores = scores.view(n, shape.kv_heads, group, queries, -1)
    scores.masked_fill_(unseen[:, None, None], float("-inf"))
    mixed = scores.softmax(-1).view(n, shape.kv_heads, group * queries, -1) @ v
    mixed = mixed.view(n, shape.kv_heads, group, queries, shape.head_dim)
    return mixed.permute(0, 3, 1, 2, 4).reshape(n, queries, -1)


def route(shape: ModelShape, weights: AttentionWeights, x: Tensor) -> tuple[Tensor, Tensor]:
    """Experts of each normed token and their shares, ``(n, top_k)`` both."""
    shares, chosen = (x @ weights.gate.T).softmax(-1).topk(shape.top_k, -1)
    return chosen, shares / shares.sum(-1, keepdim=True)


def run_experts(
    weights: ExpertWeights, x: Tensor, chosen: Tensor, shares: Tensor, first: int
) -> Tensor:
    """What the local experts, ``first`` and following, add to each token of ``x (n, hidden)``.

    Choices of experts that are not local are left out.
    """
    local = (chosen - first).flatten()
    count = weights.gate_up.shape[0]
    local = torch.where((local < 0) | (local >= count), count, local)
    order = local.argsort(stable=True)
    tokens = order // chosen.shape[1]
    scale = shares.flatten()[order, None]
    out = torch.zeros_like(x)
    low = 0
    for expert, rows in enumerate(local.bincount(minlength=count)[:count].tolist()):
        if rows:
            mine = tokens[low : low + rows]
            gate, up = (x[mine] @ weights.gate_up[expert].T).chunk(2, -1)
            y = (silu(gate) * up) @ weights.down[expert].T
            out.index_add_(0, mine, y * scale[low : low + rows])
            low += rows
    return out
