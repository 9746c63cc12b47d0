"""What each rank's experts get: a law's draws seen through a placement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.moe.laws.base import Counts, Drawn, Layers, LoadLaw
from simulator.moe.placement.base import Placement

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Loads of one number of tokens, each ``(steps, layers, ranks)``.

    ``pairs`` are tokens times the experts they picked here, ``active`` the experts with any,
    ``fullest`` the most tokens on one. Fewer layers than the model's stand for all.
    """

    tokens: int
    pairs: Floats
    active: Floats
    fullest: Floats

    def imbalance(self) -> float:
        """Most pairs on a rank by their mean over ranks, averaged over steps and layers."""
        return float((self.pairs.max(axis=-1) / self.pairs.mean(axis=-1)).mean())


def draw_loads(
    law: LoadLaw,
    placement: Placement,
    moe: Layers,
    *,
    ranks: int,
    redundant: int = 0,
    steps: int,
    sizes: Sequence[int],
    beside: Sequence[int] = (),
    seed: int = 0,
) -> Iterator[RankLoads]:
    """Loads of every rank at each of the ascending ``sizes``, ``steps`` draws each.

    With ``beside`` (ascending, from 0) the sizes are tokens of prompts, which are alike, each
    beside each of these numbers of decodes; only a ``Drawn`` law tells them apart. Raises
    ConfigError if the law does not fit the model, or the placement the ranks.
    """
    shares = expected_shares(law, moe, steps, seed)
    slots = placement.slots(shares, ranks, redundant)
    rng = np.random.default_rng([seed, 1])
    if beside:
        assert isinstance(law, Drawn)
        for tokens, both in law.mixed(rng, moe, steps, sizes, beside):
            yield seen(tokens, both, slots, moe)
        return
    for tokens, counts in zip(sizes, law.counts(rng, moe, steps, sizes), strict=True):
        even = counts.dtype.kind == "f"  # expected values
        yield _even(tokens, slots, moe) if even else seen(tokens, counts, slots, moe)


def expected_shares(law: LoadLaw, moe: Layers, steps: int, seed: int) -> Floats:
    """Share of a layer's tokens that each expert gets over all draws, ``(layers, experts)``.

    The draws are those of ``draw_loads``: what a balancer would have observed.
    """
    rng = np.random.default_rng([seed, 1])
    (counts,) = law.counts(rng, moe, steps, [1024])
    totals = counts.sum(axis=0).astype(float)
    return np.asarray(totals / totals.sum(axis=-1, keepdims=True))


def _even(tokens: int, slots: Ints, moe: Layers) -> RankLoads:
    expected = moe.experts * (1 - (1 - moe.top_k / moe.experts) ** tokens)
    ranks = slots.shape[1]
    even = np.ones((1, 1, ranks))
    held = slots.shape[2]
    per_rank = min(expected * held * ranks / moe.experts, tokens * moe.top_k) / ranks
    pairs = tokens * moe.top_k / ranks
    most = pairs / max(per_rank, 1e-9)
    return RankLoads(tokens, pairs * even, min(per_rank, held) * even, most * even)


def seen(tokens: int, counts: Counts, slots: Ints, moe: Layers) -> RankLoads:
    """Counts by expert, ``(steps, layers, experts)``, to loads by rank.

    ``slots (layers, ranks, experts a rank)``; experts without a slot are left out.
    """
    layers = counts.shape[1]
    copies = np.stack([np.bincount(row.ravel(), minlength=moe.experts) for row in slots])
    where = np.arange(layers)[:, None, None]
    held = (
        counts[:, where, slots[:layers]] / copies[where, slots[:layers]]
    )  # steps, layers, ranks, slots
    active = np.minimum(held, 1.0).sum(axis=-1)
    return RankLoads(tokens, held.sum(axis=-1), active, held.max(axis=-1))
