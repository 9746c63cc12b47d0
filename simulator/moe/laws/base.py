"""What a load law is, and how popularity drifts from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.float64] | npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layers:
    """The experts of a model: so many layers with ``experts`` each, ``top_k`` for a token."""

    layers: int
    experts: int
    top_k: int


class LoadLaw(Protocol):
    """How tokens spread over experts."""

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        """Tokens per expert, ``(steps, layers, experts)``, at each of the ascending ``sizes``.

        Sums over experts are tokens x top_k. Fewer steps or layers than asked for stand for
        all. Raises ConfigError if the law does not fit the model.
        """


@dataclass(frozen=True, slots=True)
class Drift:
    """Popularity that wanders around a mean: log-normal, first-order autoregressive.

    ``spread`` is the standard deviation of its logarithm in a step, ``correlation`` that of
    one step with the next. The tokens of one prompt resemble each other, those of decodes
    are of as many requests: the first ``beyond`` tokens of a step follow the mean.
    """

    spread: float = 0.0
    correlation: float = 0.0
    beyond: int = 0

    def steps(self, rng: np.random.Generator, popularity: Floats, steps: int) -> Floats:
        """Popularity of each step, ``(steps, layers, experts)``, from the mean."""
        if self.spread == 0.0:
            return np.broadcast_to(popularity, (steps, *popularity.shape))
        noise = rng.standard_normal((steps, *popularity.shape))
        fresh = np.sqrt(1.0 - self.correlation**2)
        for i in range(1, steps):
            noise[i] = self.correlation * noise[i - 1] + fresh * noise[i]
        drifting: Floats = popularity * np.exp(self.spread * noise)
        return drifting
