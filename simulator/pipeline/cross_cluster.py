"""Experts spread over several FFN clusters: who holds which, and who gets how much.

``moe.placement: {cluster: [[first, last], ...]}`` names inclusive ranges of experts. An expert
in several clusters is a replicated one; ``moe.replica_choice`` says which of them takes its
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import ConfigError, nearest

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def experts_held(placement: Any, clusters: Sequence[str], experts: int) -> Bools:
    """Which cluster holds which expert, ``(clusters, experts)``.

    A single cluster holds all unless ranges are given. Raises ConfigError naming what is
    wrong: an unknown cluster, a range outside the model's experts, an expert placed nowhere,
    a cluster without any.
    """
    held = np.zeros((len(clusters), experts), bool)
    if not isinstance(placement, Mapping):
        if len(clusters) > 1:
            names = ", ".join(clusters)
            raise ConfigError(
                f"moe.placement: says not which experts each of {names} holds; give "
                "{cluster: [[first, last], ...]}"
            )
        return ~held
    for name, ranges in placement.items():
        if name not in clusters:
            raise ConfigError(f"moe.placement: unknown cluster {name!r}{nearest(name, clusters)}")
        for first, last in _ranges(name, ranges):
            if not 0 <= first <= last < experts:
                raise ConfigError(
                    f"moe.placement.{name}: [{first}, {last}] is no range of the model's experts "
                    f"0 to {experts - 1}"
                )
            held[clusters.index(name), first : last + 1] = True
    nowhere = np.flatnonzero(~held.any(0))
    if len(nowhere):
        many = f" and {len(nowhere) - 1} more" * (len(nowhere) > 1)
        raise ConfigError(f"moe.placement: expert {nowhere[0]}{many} is placed in no cluster")
    idle = np.flatnonzero(~held.any(1))
    if len(idle):
        raise ConfigError(f"moe.placement: cluster {clusters[idle[0]]!r} holds no expert")
    return held


def _ranges(name: str, given: Any) -> list[tuple[int, int]]:
    try:
        found = [(first, last) for first, last in given]
    except (TypeError, ValueError):
        found = [("", "")]
    if not all(type(n) is int for pair in found for n in pair):
        raise ConfigError(f"moe.placement.{name}: expected [[first, last], ...], got {given!r}")
    return found


def _even(held: Bools) -> Floats:
    parts: Floats = held / held.sum(0)
    return parts


def _first(held: Bools) -> Floats:
    parts: Floats = (held & (held.cumsum(0) == 1)).astype(float)
    return parts


CHOICES: dict[str, Callable[[Bools], Floats]] = {
    "even": _even,  # each cluster that holds an expert takes an equal part of its tokens
    "first": _first,  # the one that stands first among the clusters takes all
}


def cluster_parts(held: Bools, choice: str | None) -> Floats:
    """Part of each expert's tokens that each cluster takes, ``(clusters, experts)``.

    Raises ConfigError for an unknown ``choice``.
    """
    name = choice or "even"
    if name not in CHOICES:
        raise ConfigError(f"moe.replica_choice: unknown {name!r}{nearest(name, CHOICES)}")
    return CHOICES[name](held)


def cluster_shares(parts: Floats, loads: Floats) -> Floats:
    """Share of all token-expert pairs that each cluster gets, by layer: ``(layers, clusters)``.

    ``loads (layers, experts)`` are shares of pairs by expert, as the load law has them.
    """
    shares: Floats = loads @ parts.T
    return shares
