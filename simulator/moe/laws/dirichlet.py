"""Popularity drawn anew for every layer, from a symmetric Dirichlet distribution.

The larger ``concentration`` (per expert), the more even: the coefficient of variation of
popularity is about 1 / sqrt(concentration).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from simulator.moe.laws.base import Counts, Drift, Layers, routed
from simulator.moe.routing import chances

LEAST = 1e-6  # of the mean popularity


class Dirichlet:
    """See the module's text."""

    def __init__(self, concentration: float = 1.0, drift: Drift | None = None) -> None:
        self.concentration = concentration
        self.drift = drift or Drift()

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        shares = rng.standard_gamma(self.concentration, (moe.layers, moe.experts))
        popularity = np.maximum(shares / shares.mean(axis=1, keepdims=True), LEAST)
        chance = chances(self.drift.steps(rng, popularity, steps), moe.top_k)
        first = np.broadcast_to(chances(popularity, moe.top_k), chance.shape)
        yield from routed(rng, chance, sizes, first, self.drift)
