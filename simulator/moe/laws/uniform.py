"""Perfect balance: every expert gets the same share of every step's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from simulator.moe.laws.base import Counts, Layers


class Uniform:
    """No expert gets more than another: no rank waits for another either."""

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        for tokens in sizes:
            yield np.full((1, 1, moe.experts), tokens * moe.top_k / moe.experts)
