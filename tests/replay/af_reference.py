"""The testbed's model in one process, in the plainest way: no cache, no batch, float64."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from replay.af_testbed import model
from replay.af_testbed.shape import ModelShape


class Reference:
    """Recomputes the whole sequence for every token; counts the experts of the last one."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self.attention = [model.attention_weights(shape, i) for i in range(shape.layers)]
        everything = range(shape.experts)
        self.experts = [model.expert_weights(shape, i, everything) for i in range(shape.layers)]
        self.embedding, self.head = model.embedding(shape).double(), model.head(shape).double()

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[list[Counter[int]]]]:
        """Greedy tokens, and by step and layer the tokens sent to each expert."""
        tokens, counted = list(prompt), []
        for step in range(count):
            x, chosen = self._forward(tokens)
            counted.append(
                [Counter(c[0 if step == 0 else -1 :].flatten().tolist()) for c in chosen]
            )
            tokens.append(int((self._norm(x[-1]) @ self.head.T).argmax()))
        return tokens[len(prompt) :], counted

    def _forward(self, tokens: list[int]) -> tuple[Tensor, list[Tensor]]:
        x, chosen = self.embedding[tokens], []
        for attention, experts in zip(self.attention, self.experts, strict=True):
            x = x + self._attend(attention, x)
            normed = self._norm(x)
            shares = (normed @ attention.gate.double().T).softmax(-1)
            top = shares.topk(self.shape.top_k, -1)
            chosen.append(top.indices)
            for i, row in enumerate(normed):
                total = top.values[i].sum()
                for share, e in zip(top.values[i], top.indices[i].tolist(), strict=True):
                    gate, up = (experts.gate_up[e].double() @ row).chunk(2)
                    y = experts.down[e].double() @ (gate * gate.sigmoid() * up)
                    x[i] += share / total * y
        return x, chosen

    def _attend(self, weights: model.AttentionWeights, x: Tensor) -> Tensor:
        shape, n = self.shape, len(x)
        rows = (self._norm(x) @ weights.qkv.double().T).view(n, -1, shape.head_dim)
        heads = []
        for h in range(shape.heads):
            group = h // (shape.heads // shape.kv_heads)
            q = self._turned(self._norm(rows[:, h]))
            k = self._turned(self._norm(rows[:, shape.heads + group]))
            v = rows[:, shape.heads + shape.kv_heads + group]
            scores = q @ k.T / shape.head_dim**0.5
            later = torch.ones(n, n).triu(1).bool()
            heads.append(scores.masked_fill(later, float("-inf")).softmax(-1) @ v)
        return torch.cat(heads, -1) @ weights.out.double().T

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary embedding as a product of complex numbers."""
        half = self.shape.head_dim // 2
        turns = torch.arange(len(x)).double()[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(turns), turns)
        return torch.cat([z.real, z.imag], -1)

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
