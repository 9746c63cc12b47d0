"""Consecutive experts on a rank: vLLM's default."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.moe.placement.base import Floats, Ints
from traces.errors import ConfigError


class Linear:
    """Rank r of n holds experts [r E / n, (r + 1) E / n)."""

    def slots(self, shares: Floats, ranks: int, redundant: int) -> Ints:
        return _same_in_all(shares, np.arange(shares.shape[1]), ranks, redundant)


class RoundRobin:
    """Rank r of n holds experts r, r + n, r + 2 n, ...; ``expert_placement_strategy``."""

    def slots(self, shares: Floats, ranks: int, redundant: int) -> Ints:
        experts = np.arange(shares.shape[1])
        order = np.argsort(experts % ranks, kind="stable")
        return _same_in_all(shares, order, ranks, redundant)


def _same_in_all(shares: Floats, order: npt.NDArray[np.int64], ranks: int, more: int) -> Ints:
    if more or len(order) % ranks:
        raise ConfigError(
            f"moe.placement: {len(order)} experts over {ranks} ranks"
            + (f", {more} redundant ones need eplb" if more else " do not divide")
        )
    rows: Ints = np.broadcast_to(
        order.reshape(ranks, -1), (len(shares), ranks, len(order) // ranks)
    )
    return rows
