"""What a load law is, and how popularity drifts from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from simulator.moe.routing import route

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
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

    ``spread`` is the standard deviation of its logarithm in a step, one for all layers or one
    each, ``correlation`` that of one step with the next. The tokens of one prompt resemble each
    other, those of decodes are of as many requests: steps of up to ``beyond`` tokens follow the
    mean.
    """

    spread: float | tuple[float, ...] = 0.0
    correlation: float = 0.0
    beyond: int = 0

    def steps(self, rng: np.random.Generator, popularity: Floats, steps: int) -> Floats:
        """Popularity of each step, ``(steps, layers, experts)``, from the mean."""
        spread = np.reshape(self.spread, (-1, 1))
        if not spread.any():
            return np.broadcast_to(popularity, (steps, *popularity.shape))
        noise = rng.standard_normal((steps, *popularity.shape))
        fresh = np.sqrt(1.0 - self.correlation**2)
        for i in range(1, steps):
            noise[i] = self.correlation * noise[i - 1] + fresh * noise[i]
        drifting: Floats = popularity * np.exp(spread * noise)
        return drifting


def routed(
    rng: np.random.Generator, chance: Floats, sizes: Sequence[int], mean: Floats, drift: Drift
) -> Iterator[Ints]:
    """``route`` for each of the ascending ``sizes``, every draw's tokens those before and more.

    Steps of up to ``drift.beyond`` tokens follow the chances ``mean``; those of more begin anew.
    """
    counts = np.zeros(chance.shape, np.int64)
    before = 0
    for tokens in sizes:
        if before <= drift.beyond < tokens:
            counts, before = np.zeros(chance.shape, np.int64), 0
        here = mean if tokens <= drift.beyond else chance
        counts = counts + route(rng, here, tokens - before)
        before = tokens
        yield counts
