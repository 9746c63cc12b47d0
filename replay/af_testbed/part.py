"""Micro-batches and their requests, as the attention process holds them."""

from __future__ import annotations

import torch
from torch import Tensor

from replay.af_testbed.shape import Launch, Run


class Part:
    """A micro-batch: its requests, ``low`` the first, and the tokens they run in a step, flat.

    ``keys`` and ``values`` are its cache: ``(layers, requests, kv_heads, tokens, head_dim)``.
    """

    x: Tensor
    next_tokens: Tensor
    sent: list[Tensor]

    def __init__(self, launch: Launch, prompts: list[list[int]], low: int) -> None:
        self.low, shape = low, launch.model
        cache = (shape.layers, len(prompts), shape.kv_heads, launch.max_len, shape.head_dim)
        self.keys, self.values = torch.empty(cache).zero_(), torch.empty(cache).zero_()
        lengths = torch.tensor([len(p) for p in prompts])
        self.tokens = torch.tensor([t for p in prompts for t in p])
        self.request = torch.arange(len(prompts)).repeat_interleave(lengths)
        self.positions = torch.cat([torch.arange(len(p)) for p in prompts])
        self.queries = self.longest = int(lengths.max())
        self.last_rows = lengths.cumsum(0) - 1
        self._lengths = lengths
        self.all_rows = torch.arange(len(self.tokens))

    def advance(self) -> None:
        """From here on each request runs the token it sampled last."""
        self.tokens, self.positions = self.next_tokens, self._lengths.clone()
        self._lengths = self._lengths + 1
        self.request = torch.arange(len(self._lengths))
        self.all_rows = self.request
        self.queries, self.longest = 1, int(self._lengths.max())


def prompts_of(run: Run, vocab: int) -> list[list[int]]:
    """Random prompts, the same for the same run and seed; a smaller batch has the first ones."""
    prompts: list[list[int]] = []
    for i in range(run.batch):
        generator = torch.Generator().manual_seed(run.seed * 100_003 + i)
        shorter = int(torch.randint(0, run.spread + 1, (1,), generator=generator))
        tokens = torch.randint(0, vocab, (run.prompt - shorter,), generator=generator)
        prompts.append(tokens.tolist())
    return prompts
