"""Popularity as measured: one number for each expert of each layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.moe.laws.base import Drawn, Layers, Prompts
from traces.errors import ConfigError

Floats = npt.NDArray[np.float64]
LEAST = 1e-3  # of the mean chance: an expert that was never seen may still be picked


class Table(Drawn):
    """``shares``: of a layer's tokens the share that each expert gets, ``(layers, experts)``.

    One layer stands for all.
    """

    def __init__(
        self, shares: Floats, prompts: Prompts | None = None, source: str = "table"
    ) -> None:
        self.shares = shares
        self.prompts = prompts or Prompts()
        self.source = source

    def mean(self, rng: np.random.Generator, moe: Layers) -> Floats:
        layers, experts = self.shares.shape
        if experts != moe.experts or layers not in (1, moe.layers):
            raise ConfigError(
                f"moe.expert_load: {self.source} has {layers} layers of {experts} experts, the "
                f"model {moe.layers} of {moe.experts}"
            )
        shares = np.broadcast_to(self.shares, (moe.layers, experts))
        shares = np.maximum(shares, LEAST / experts)
        return bounded(shares, moe.top_k)


def bounded(shares: Floats, top_k: int) -> Floats:
    """Chances in proportion to ``shares``, as far as none exceeds 1; they sum to ``top_k``."""
    chance = shares * (top_k / shares.sum(axis=-1, keepdims=True))
    for _ in range(shares.shape[-1]):
        full = chance >= 1.0
        if not (chance > 1.0).any():
            break
        rest = np.where(full, 0.0, chance)
        left = top_k - full.sum(axis=-1, keepdims=True)
        scale = left / np.maximum(rest.sum(axis=-1, keepdims=True), 1e-300)
        chance = np.where(full, 1.0, rest * scale)
    return np.asarray(chance)
