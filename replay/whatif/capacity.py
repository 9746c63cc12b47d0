"""The highest rate that meets the SLOs, by bisection, with the interval it lies in.

Taken to be one threshold: a rate below one that meets the SLOs meets them too. Where it is
not, the interval still has one end that does and one that does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Found:
    """The highest factor seen to meet the SLOs and the lowest seen above it that does not.

    None: not even the lowest factor tried meets them, or even the highest does.
    """

    holds: float | None
    fails: float | None
    replays: int


def find_capacity(
    holds: Callable[[float], bool], low: float, high: float, tolerance: float
) -> Found:
    """Bisect ``holds`` (of a rate's factor) in [low, high], on a logarithmic scale from 1.

    Doubles or halves from 1 (or the end nearest to it) until the threshold lies between two
    factors, then halves that interval until ``fails <= holds * (1 + tolerance)``.

    >>> found = find_capacity(lambda f: f <= 3.3, 0.1, 10, 0.05)
    >>> found.holds <= 3.3 < found.fails <= found.holds * 1.05
    True
    """
    factor, replays = min(max(1.0, low), high), 1
    good, bad = (factor, None) if holds(factor) else (None, factor)
    while good is None or bad is None:
        factor = max(bad / 2, low) if good is None and bad is not None else min(factor * 2, high)
        if factor in (good, bad):
            return Found(good, bad, replays)
        replays += 1
        if holds(factor):
            good = factor
        else:
            bad = factor
    while bad > good * (1 + tolerance):
        factor = (good * bad) ** 0.5
        replays += 1
        if holds(factor):
            good = factor
        else:
            bad = factor
    return Found(good, bad, replays)
