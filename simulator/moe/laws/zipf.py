"""Popularity by rank: the n-th most popular expert of a layer n^-exponent times the first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.moe.laws.base import Drawn, Layers, Prompts
from simulator.moe.routing import chances

Floats = npt.NDArray[np.float64]


class Zipf(Drawn):
    """Every layer has its own order of experts."""

    def __init__(self, exponent: float = 1.0, prompts: Prompts | None = None) -> None:
        self.exponent = exponent
        self.prompts = prompts or Prompts()

    def mean(self, rng: np.random.Generator, moe: Layers) -> Floats:
        by_rank = np.arange(1.0, moe.experts + 1) ** -self.exponent
        popularity = rng.permuted(np.tile(by_rank, (moe.layers, 1)), axis=1)
        return chances(popularity, moe.top_k)
