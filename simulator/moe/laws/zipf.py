"""Popularity by rank: the n-th most popular expert of a layer n^-exponent times the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from simulator.moe.laws.base import Counts, Drift, Layers, routed
from simulator.moe.routing import chances


class Zipf:
    """Every layer has its own order of experts."""

    def __init__(self, exponent: float = 1.0, drift: Drift | None = None) -> None:
        self.exponent = exponent
        self.drift = drift or Drift()

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        by_rank = np.arange(1.0, moe.experts + 1) ** -self.exponent
        popularity = rng.permuted(np.tile(by_rank, (moe.layers, 1)), axis=1)
        chance = chances(self.drift.steps(rng, popularity, steps), moe.top_k)
        first = np.broadcast_to(chances(popularity, moe.top_k), chance.shape)
        yield from routed(rng, chance, sizes, first, self.drift)
