"""Popularity drawn anew for every layer, from a symmetric Dirichlet distribution.

The larger ``concentration`` (per expert), the more even: the coefficient of variation of
popularity is about 1 / sqrt(concentration).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.moe.laws.base import Drawn, Layers, Prompts
from simulator.moe.routing import chances

Floats = npt.NDArray[np.float64]

LEAST = 1e-6  # of the mean popularity


class Dirichlet(Drawn):
    """See the module's text."""

    def __init__(self, concentration: float = 1.0, prompts: Prompts | None = None) -> None:
        self.concentration = concentration
        self.prompts = prompts or Prompts()

    def mean(self, rng: np.random.Generator, moe: Layers) -> Floats:
        shares = rng.standard_gamma(self.concentration, (moe.layers, moe.experts))
        popularity = np.maximum(shares / shares.mean(axis=1, keepdims=True), LEAST)
        return chances(popularity, moe.top_k)
