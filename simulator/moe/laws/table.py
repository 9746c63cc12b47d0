"""Popularity as measured: one number for each expert of each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from simulator.moe.laws.base import Counts, Drift, Layers, routed
from simulator.moe.routing import chances, popularity
from traces.errors import ConfigError

Floats = npt.NDArray[np.float64]
LEAST = 1e-3  # of the mean chance: an expert that was never seen may still be picked


class Table:
    """``shares``: of a layer's tokens the share that each expert gets, ``(layers, experts)``.

    One layer stands for all.
    """

    def __init__(self, shares: Floats, drift: Drift | None = None, source: str = "table") -> None:
        self.shares = shares
        self.drift = drift or Drift()
        self.source = source

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        layers, experts = self.shares.shape
        if experts != moe.experts or layers not in (1, moe.layers):
            raise ConfigError(
                f"moe.expert_load: {self.source} has {layers} layers of {experts} experts, the "
                f"model {moe.layers} of {moe.experts}"
            )
        shares = np.broadcast_to(self.shares, (moe.layers, experts))
        shares = np.maximum(shares, LEAST / experts)
        mean = bounded(shares, moe.top_k)
        chance = chances(self.drift.steps(rng, popularity(mean), steps), moe.top_k)
        first = np.broadcast_to(mean, chance.shape)
        yield from routed(rng, chance, sizes, first, self.drift)


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
