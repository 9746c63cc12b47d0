"""What a load law is, and how alike the tokens of a prompt are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from simulator.moe.routing import route, shifted

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float64] | npt.NDArray[np.int64]
MOST_PROMPTS = 4  # that are drawn one by one between two sizes


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
class Prompts:
    """How alike the tokens of a prompt are: they share a popularity around the mean.

    A token picks the experts whose score exceeds a threshold (Thurstone, Psychological Review
    34(4), 1927). A score is normal around the expert's own: a part that all tokens of a prompt
    share, ``spread`` times as wide (one for all layers or one each) as the part of each token.
    ``correlation`` is that of the shared part in one step with the next. Every ``tokens`` of a
    step's prompts are one, all of them if 0. Decodes, of as many requests, follow the mean.
    """

    spread: float | tuple[float, ...] = 0.0
    correlation: float = 0.0
    tokens: int = 0

    @property
    def alike(self) -> bool:
        """Whether a token of a prompt says anything of the others."""
        return bool(np.any(np.asarray(self.spread) > 0))

    def chances(self, rng: np.random.Generator, mean: Floats, steps: int) -> Floats:
        """Chances of one prompt in each step, ``(steps, layers, experts)``, around the mean."""
        noise = rng.standard_normal((steps, *mean.shape))
        fresh = np.sqrt(1.0 - self.correlation**2)
        for i in range(1, steps):
            noise[i] = self.correlation * noise[i - 1] + fresh * noise[i]
        return shifted(mean, np.reshape(self.spread, (-1, 1)), noise)

    def over(self, rng: np.random.Generator, mean: Floats, steps: int, prompts: float) -> Floats:
        """Chances averaged over many prompts: a few stand for all, as near to the mean."""
        few = sum(self.chances(rng, mean, steps) for _ in range(MOST_PROMPTS)) / MOST_PROMPTS
        return np.asarray(mean + np.sqrt(MOST_PROMPTS / prompts) * (few - mean))

    def counts(
        self, rng: np.random.Generator, mean: Floats, steps: int, sizes: Sequence[int]
    ) -> Iterator[Ints]:
        """As ``LoadLaw.counts``, where all tokens are of prompts."""
        counts = np.zeros((steps, *mean.shape), np.int64)
        length = self.tokens or sizes[-1]
        chance, before, left = mean, 0, 0  # tokens so far, and those left of the prompt
        for tokens in sizes:
            while before < tokens:
                more = tokens - before
                if not left and more > MOST_PROMPTS * length:
                    chance, left = self.over(rng, mean, steps, more / length), more
                elif not left:
                    chance, left = self.chances(rng, mean, steps), length
                more = min(more, left)
                counts = counts + route(rng, chance, more)
                before, left = before + more, left - more
            yield counts


class Drawn:
    """A law by which each expert of a layer has a chance, and the tokens of a prompt are alike."""

    prompts: Prompts

    def mean(self, rng: np.random.Generator, moe: Layers) -> Floats:
        """Chance that a token picks each expert, ``(layers, experts)``; they sum to top_k.

        Raises ConfigError if the law does not fit the model.
        """
        raise NotImplementedError

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        """See ``LoadLaw``; each token picks for itself."""
        yield from routed(rng, self.mean(rng, moe), steps, sizes)

    def mixed(
        self,
        rng: np.random.Generator,
        moe: Layers,
        steps: int,
        prompts: Sequence[int],
        decodes: Sequence[int],
    ) -> Iterator[tuple[int, Ints]]:
        """Tokens and counts of each number of prompts' tokens beside each number of decodes.

        Both ascend from 0; the decodes change fastest.
        """
        mean = self.mean(rng, moe)
        beside = list(routed(rng, mean, steps, decodes))
        for own, alike in zip(prompts, self.prompts.counts(rng, mean, steps, prompts), strict=True):
            for more, other in zip(decodes, beside, strict=True):
                yield own + more, alike + other


def routed(
    rng: np.random.Generator, mean: Floats, steps: int, sizes: Sequence[int]
) -> Iterator[Ints]:
    """Counts at each of the ascending ``sizes``, every draw's tokens those before and more."""
    chance = np.broadcast_to(mean, (steps, *mean.shape))
    counts, before = np.zeros(chance.shape, np.int64), 0
    for tokens in sizes:
        counts = counts + route(rng, chance, tokens - before)
        before = tokens
        yield counts
