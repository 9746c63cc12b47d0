"""The counts of a capture (``experts.parquet``), step by step or resampled layer by layer.

A step of the capture ran on so many tokens, a step of the simulation on others: where it
has fewer, the recorded counts are thinned; where more, the rest are drawn by the layer's
share over the whole capture. At the recorded size the counts are those recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from simulator.moe.laws.base import Counts, Layers
from simulator.moe.laws.table import LEAST, bounded
from simulator.moe.recorded import ExpertCounts
from simulator.moe.routing import route
from traces.errors import ConfigError

Ints = npt.NDArray[np.int64]


class Recorded:
    """``resampled``: each layer of a step takes a recorded step of its own, at random."""

    def __init__(self, record: ExpertCounts, *, resampled: bool = False) -> None:
        self.record = record
        self.resampled = resampled

    def counts(
        self, rng: np.random.Generator, moe: Layers, steps: int, sizes: Sequence[int]
    ) -> Iterator[Counts]:
        seen, layers, experts = self.record.counts.shape
        if (layers, experts) != (moe.layers, moe.experts) or self.record.top_k != moe.top_k:
            raise ConfigError(
                f"moe.expert_load: {self.record.source} recorded {layers} layers of {experts} "
                f"experts, {self.record.top_k} for a token; the model has {moe.layers} of "
                f"{moe.experts}, {moe.top_k} for a token"
            )
        which = np.tile(np.arange(min(steps, seen))[:, None], (1, layers))
        if self.resampled:
            which = rng.integers(seen, size=(steps, layers))
        counts = self.record.counts[which, np.arange(layers)]
        tokens = counts.sum(axis=-1)[:, :1] // moe.top_k  # (steps, 1) or, resampled, per layer
        if self.resampled:
            tokens = counts.sum(axis=-1) // moe.top_k
        shares = np.maximum(self.record.shares(), LEAST / experts)
        chance = np.broadcast_to(bounded(shares, moe.top_k), counts.shape)
        for size in sizes:
            yield _resized(rng, counts, np.broadcast_to(tokens, counts.shape[:2]), chance, size)


def _resized(
    rng: np.random.Generator, counts: Ints, tokens: Ints, chance: npt.NDArray[np.float64], size: int
) -> Ints:
    """Counts of ``tokens`` tokens made those of ``size``."""
    found = counts.copy()
    top_k = counts.sum(axis=-1) // np.maximum(tokens, 1)
    for at in np.argwhere(tokens > size):
        here = tuple(at)
        found[here] = thinned(rng, counts[here], size, int(top_k[here]))
    for more in np.unique(size - tokens[tokens < size]):
        where = tokens == size - more
        found[where] += route(rng, chance[where], int(more))
    return found


def thinned(rng: np.random.Generator, counts: Ints, size: int, top_k: int) -> Ints:
    """Of counted picks those of ``size`` tokens; no expert keeps more picks than tokens."""
    kept = rng.multivariate_hypergeometric(counts, size * top_k, method="marginals")
    while (over := np.maximum(kept - size, 0)).any():
        room = np.minimum(counts, size) - np.minimum(kept, size)
        kept = np.minimum(kept, size)
        kept += rng.multivariate_hypergeometric(room, int(over.sum()), method="marginals")
    return np.asarray(kept)
