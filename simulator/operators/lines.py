"""Lines of a measured grid: the points that differ in one coordinate only, and neighbours there.

line of m at n = 4096, k = 512:   m = 1    2    4         16   32
                                                  8 asked
                                  below = 4, 1 octave   above = 16, 1 octave
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Place = Mapping[str, npt.NDArray[np.generic]]
"""Coordinates of points by name, each ``(n,)``; numbers or labels."""


@dataclass(frozen=True, slots=True)
class Axis:
    """A coordinate along which to interpolate, and those that stay the same on a line.

    ``straight`` says that time may grow in proportion between two neighbours.
    """

    name: str
    along: str
    fixed: tuple[str, ...]
    straight: bool = False


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Nearest known point on either side of each point, on its line; -1 where there is none.

    ``below_gap`` and ``above_gap`` are octaves to them, NaN without one.
    """

    below: npt.NDArray[np.int64]
    above: npt.NDArray[np.int64]
    below_gap: Floats
    above_gap: Floats

    def of(self, points: slice | npt.NDArray[np.int64]) -> Neighbours:
        """Those of some points."""
        return Neighbours(
            self.below[points], self.above[points], self.below_gap[points], self.above_gap[points]
        )

    @property
    def any(self) -> Bools:
        """Points with at least one neighbour."""
        return (self.below >= 0) | (self.above >= 0)

    @property
    def both(self) -> Bools:
        """Points between two neighbours."""
        return (self.below >= 0) & (self.above >= 0)

    def values(self, known: Floats) -> tuple[Floats, Floats, Floats]:
        """Of the neighbour below, above, and interpolated in octaves; NaN without any.

        Beyond the last neighbour its value holds on.
        """
        below = np.where(self.below >= 0, known[self.below], np.nan)
        above = np.where(self.above >= 0, known[self.above], np.nan)
        with np.errstate(invalid="ignore"):
            share = self.below_gap / (self.below_gap + self.above_gap)
        between = below * (1 - share) + above * share
        one = np.where(np.isnan(below), above, below)
        return below, above, np.where(self.both, between, one)

    def straight(self, log_s: Floats) -> Floats:
        """Log seconds on the straight line between both neighbours; NaN without both.

        >>> near = neighbours(np.array([0.0, 1.0, 2.0]), np.zeros(3, int), np.ones(3, bool))
        >>> np.exp(near.straight(np.log([1.0, 9.0, 4.0]))).round(3).tolist()  # 1 + (4 - 1) / 3
        [nan, 2.0, nan]
        """
        low, high = np.exp2(-self.below_gap), np.exp2(self.above_gap)
        share = (1 - low) / (high - low)
        below, above, _ = self.values(log_s)
        found: Floats = below + np.log1p(share * np.expm1(above - below))
        return found


def group_numbers(place: Place, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number of the group of each point: equal where all named coordinates are."""
    numbers: npt.NDArray[np.int64] = np.zeros(len(next(iter(place.values()))), np.int64)
    for name in names:
        codes, values = pd.factorize(np.asarray(place[name]), use_na_sentinel=False)
        numbers = pd.factorize(numbers * len(values) + codes)[0]
    return numbers


def neighbours(position: Floats, line: npt.NDArray[np.int64], known: Bools) -> Neighbours:
    """Nearest ``known`` points of each point, itself excluded.

    ``position`` is in octaves. Points at the same place on a line count as neighbours with no
    gap, so give each place once. O(n log n).

    >>> found = neighbours(np.array([0.0, 2.0, 3.0]), np.zeros(3, int), np.array([1, 0, 1], bool))
    >>> found.below.tolist(), found.above.tolist(), found.below_gap.tolist()[1]
    ([-1, 0, 0], [2, 2, -1], 2.0)
    """
    size = len(position)
    order = np.lexsort((position, line))
    x, group, seen = position[order], line[order], known[order]
    index = np.arange(size)
    before = np.maximum.accumulate(np.where(seen, index, -1))
    before = np.concatenate([[-1], before[:-1]])
    after = np.minimum.accumulate(np.where(seen, index, size)[::-1])[::-1]
    after = np.concatenate([after[1:], [size]])
    sides = []
    for other, inside in ((before, before >= 0), (after, after < size)):
        at = np.clip(other, 0, size - 1)
        fits = inside & (group[at] == group)
        where, gap = np.full(size, -1, np.int64), np.full(size, np.nan)
        where[order] = np.where(fits, order[at], -1)
        gap[order] = np.where(fits, np.abs(x - x[at]), np.nan)
        sides.append((where, gap))
    (below, below_gap), (above, above_gap) = sides
    return Neighbours(below, above, below_gap, above_gap)
