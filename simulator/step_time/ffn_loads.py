"""What the ranks of FFN clusters get of a step's tokens under drawn expert loads.

Every cluster takes its part of each expert's tokens (``pipeline/cross_cluster.py``); within it
whole experts lie on ranks as the placement says, or every tensor-parallel group has all of
them and takes its even share of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.model import ModelSpec
from simulator.moe.laws import Layers
from simulator.moe.loads import RankLoads, expected_shares, seen
from simulator.step_time.experts import ExpertLoads

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ranks:
    """The ranks of an FFN cluster: ``part`` of each expert's tokens that it takes, ``(experts,)``.

    ``whole`` experts on each of the ``groups`` ranks, or all experts in every group;
    ``redundant`` ones are copies beside the model's.
    """

    groups: int
    whole: bool
    part: Floats
    redundant: int = 0


def law_shares(loads: ExpertLoads, model: ModelSpec) -> Floats:
    """Share of token-expert pairs of each expert, ``(layers, experts)``."""
    return expected_shares(loads.law, layers_of(model), loads.draws, 0)


def layers_of(model: ModelSpec) -> Layers:
    """The model's experts, as load laws take them."""
    assert model.moe is not None
    return Layers(model.moe_layers, model.moe.experts, model.moe.top_k)


def drawn_loads(
    loads: ExpertLoads, model: ModelSpec, ranks: Ranks, sizes: Sequence[int], *, seed: int = 0
) -> list[RankLoads]:
    """Loads of the ranks at each of the ascending ``sizes``, tokens of all attention ranks.

    Draws are the same for every cluster of a deployment. Raises ConfigError if the law does
    not fit the model, or the placement the ranks.
    """
    moe = layers_of(model)
    rng = np.random.default_rng([seed, 1])
    slots = None
    if ranks.whole and (ranks.part == 1.0).all():
        shares = expected_shares(loads.law, moe, loads.draws, seed)
        slots = loads.placement.slots(shares, ranks.groups, ranks.redundant)
    elif ranks.whole:
        held = np.flatnonzero(ranks.part).reshape(ranks.groups, -1)
        slots = np.broadcast_to(held, (moe.layers, *held.shape))
    found = []
    for tokens, drawn in zip(sizes, loads.law.counts(rng, moe, loads.draws, sizes), strict=True):
        counts = drawn * ranks.part
        if slots is not None:
            found.append(seen(tokens, counts, slots, moe))
        else:
            mine = counts[:, :, None] / ranks.groups
            found.append(
                RankLoads(tokens, mine.sum(-1), np.minimum(mine, 1.0).sum(-1), mine.max(-1))
            )
    return found


def received(load: RankLoads, top_k: int) -> Floats:
    """Tokens that come to each rank, once for all of their experts there; as ``pairs``."""
    share = np.minimum(load.pairs / (load.tokens * top_k), 1.0)
    tokens: Floats = load.tokens * (1.0 - (1.0 - share) ** top_k)
    return tokens
