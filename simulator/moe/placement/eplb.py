"""Experts balanced by their load, the popular ones on several ranks.

DeepSeek's EPLB as vLLM runs it (``distributed/eplb/policy/default.py``, the global policy):
each redundant slot goes to the expert whose copies have the most load each, then copies,
the heaviest first, to the rank with the least load that has a slot left.
"""

from __future__ import annotations

import heapq

import numpy as np

from simulator.moe.placement.base import Floats, Ints
from traces.errors import ConfigError


class Eplb:
    """Placed once, by the loads that the law expects."""

    def slots(self, shares: Floats, ranks: int, redundant: int) -> Ints:
        total = shares.shape[1] + redundant
        if total % ranks:
            raise ConfigError(f"moe.placement: {total} experts over {ranks} ranks do not divide")
        return np.stack([_layer(layer, ranks, redundant) for layer in shares])


def _layer(shares: Floats, ranks: int, redundant: int) -> Ints:
    copies = np.ones(len(shares), np.int64)
    for _ in range(redundant):
        copies[np.argmax(shares / copies)] += 1
    held = np.repeat(np.arange(len(shares)), copies)
    load = (shares / copies)[held]
    each = len(held) // ranks
    placed: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for slot in np.argsort(-load, kind="stable"):
        so_far, rank = heapq.heappop(heap)
        placed[rank].append(int(held[slot]))
        if len(placed[rank]) < each:
            heapq.heappush(heap, (so_far + float(load[slot]), rank))
    return np.array(placed, np.int64)
