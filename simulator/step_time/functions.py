"""Functions of a step's shape, of which step times are sums; each says what it computes.

They are data, so that the engine can evaluate them compiled (``engine/times.py``); called,
they give the same number in Python, for fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.step_time.base import BatchShape

Floats = npt.NDArray[np.float64]
Numbers = Sequence[float] | Floats


@dataclass(frozen=True, slots=True)
class Constant:
    """1 for every step."""

    def __call__(self, shape: BatchShape) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Linear:
    """A feature of the shape (a field of ``BatchShape``, or prefill_rows)."""

    feature: str

    def __call__(self, shape: BatchShape) -> float:
        return float(getattr(shape, self.feature))


@dataclass(frozen=True, slots=True)
class UpTo:
    """The feature, but no more than ``knee``."""

    feature: str
    knee: int

    def __call__(self, shape: BatchShape) -> float:
        return float(min(getattr(shape, self.feature), self.knee))


@dataclass(frozen=True, slots=True)
class Beyond:
    """What the feature has beyond ``knee``."""

    feature: str
    knee: int

    def __call__(self, shape: BatchShape) -> float:
        return float(max(0, getattr(shape, self.feature) - self.knee))


@dataclass(frozen=True, slots=True)
class ActiveExperts:
    """Expected experts with at least one of the step's tokens, per layer, under even routing.

    E (1 - (1 - k/E)^m): each of m tokens picks k of E experts.

    >>> round(ActiveExperts(16, 2)(BatchShape(tokens=4)), 3)
    6.621
    """

    experts: int
    top_k: int

    def __call__(self, shape: BatchShape) -> float:
        missed = 1.0 - self.top_k / self.experts
        return float(self.experts * (1.0 - missed**shape.tokens))


@dataclass(frozen=True, slots=True)
class Axis:
    """A table's axis: a feature and its grid, ascending; ``log``: interpolate in its logarithm.

    The grid of a logarithmic axis is above 0.
    """

    feature: str
    grid: Numbers
    log: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Values on a grid of one or two features, interpolated between its points.

    ``values[j][i]`` belongs to ``y.grid[j]`` and ``x.grid[i]``; without ``y`` there is one
    line. ``log``: interpolate in the logarithm of the values, which are above 0 then. Beyond
    the grid the edge holds, and the step counts as extrapolated; a step whose first feature
    is 0 has no such work and costs 0.
    """

    x: Axis
    values: Sequence[Numbers] | Floats
    y: Axis | None = None
    log: bool = False


@dataclass(frozen=True, slots=True)
class Dense:
    """A value for each of 0, 1, 2, ... of the feature; beyond the last it holds, and is counted.

    Up to ``together`` tokens on the fullest rank all ranks that step together run as many as
    that one (CUDA graphs of one size): it counts then, in place of the feature. ``halves``:
    where a step is halved it is twice the value of half the tokens of the fullest rank.
    """

    feature: str
    values: Numbers
    together: int = 0
    halves: bool = False


@dataclass(frozen=True, slots=True)
class Shared:
    """What all ranks that step together share, over the tokens of all: a curve for each draw.

    ``values[j][i]`` belongs to draw j and ``grid[i]`` tokens (ascending, from 1), linear in
    between; a step of draw d takes the curve d modulo their number. ``padded[m]`` are the
    tokens of all ranks where the fullest has m and all run as many; beyond, the ranks' own.
    With ``beside`` (ascending, from 0) ``values[j][k][i]`` is of ``grid[i]`` tokens of prompts
    (from 0) and ``beside[k]`` others, linear in both.
    """

    grid: Numbers
    values: Sequence[Numbers] | Floats
    padded: Numbers = ()
    beside: Numbers = ()


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention over four numbers of the batch; see ``engine/attention.py``.

    ``axes``: tokens of the chunk, its context, decodes, their mean context, each from 0.
    ``seconds`` has one value for each combination; ``spread[m, k, l]`` is what a coefficient
    of variation of 1 adds, as a share, at point k of the third and l of the fourth axis,
    without (m = 0) and with a chunk, up to a variation of ``spread_most``.
    """

    axes: Sequence[Numbers]
    seconds: Floats
    spread: Floats
    spread_most: float


Function = Constant | Linear | UpTo | Beyond | ActiveExperts | Dense | Shared | Table | Attention
