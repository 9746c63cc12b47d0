"""95 % intervals of an error from one run on each side, where values depend on one another.

Requests in a queue are not independent, so what is resampled is blocks of successive
values, a sixth of the run long: long blocks keep the dependence, and that there are few is
paid for by Student's t. Both sides are resampled in the same places, which pairs requests
by id and steps by when they ran. The interval is built on log(simulated / measured), which
is symmetric where the ratio is not, and mapped back. It is the sampling error of a run of
this length, not the machine's noise; that needs repeats (``noise``).

Above ``BOOTSTRAP_LIMIT`` values nothing is resampled: the influence of each value on a
statistic (of a quantile: from the spacing of the order statistics around it) gives the
standard error by overlapping batch means.

Between an M/G/1 queue and one 3 % slower, 1,000 requests each, the interval of the mean
held the truth in 92 % of 1,000 trials at load 0.5 and in 88 % at 0.7, those of p50 to p95
in 93-99 %, that of p99 in 96 % and 88 %.

Sources: Kunsch 1989 (moving blocks); Meketon and Schmeiser 1984 (overlapping batch means,
1.5 n / L degrees of freedom); Bofinger 1975 (width of the quantile spacing).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from traces.metrics import Floats
from validation.errors import PERCENTILES, STATISTICS, statistics
from validation.noise import LEVEL

BOOTSTRAP_LIMIT = 100_000
BLOCKS = 6
FEWEST = 20
CELLS = 120
_RESAMPLED_AT_ONCE = 2_000_000  # values: 16 MB a side

Interval = tuple[float, float]


def block_length(n: int) -> int:
    """Length of a block for ``n`` successive values: a sixth of them."""
    return max(1, math.ceil(n / BLOCKS))


def resamples(n: int) -> int:
    """Bootstrap resamples for ``n`` values: 500, fewer for long series, never below 100."""
    return int(np.clip(10_000_000 // max(n, 1), 100, 500))


def method(measured: int, simulated: int) -> str:
    """What an interval over so many values on each side rests on, in words."""
    if min(measured, simulated) < FEWEST:
        return f"none: fewer than {FEWEST} values"
    lengths = sorted({block_length(measured), block_length(simulated)})
    blocks = f"{' and '.join(f'{length:,}' for length in lengths)} successive values"
    most = max(measured, simulated)
    if most > BOOTSTRAP_LIMIT:
        return f"overlapping batch means of {blocks}, quantiles by order statistics (normal theory)"
    return f"moving-block bootstrap, blocks of {blocks}, {resamples(most)} draws"


def error_intervals(
    measured: Floats, simulated: Floats, seed: int = 0
) -> dict[str, Interval | None]:
    """95 % interval of simulated / measured - 1 for each of ``STATISTICS``.

    ``measured`` and ``simulated`` hold finite values in order of time, aligned where they
    are as many. None where a side has fewer than ``FEWEST`` values or a statistic is not
    above zero.
    """
    sizes = (len(measured), len(simulated))
    if min(sizes) < FEWEST:
        return dict.fromkeys(STATISTICS)
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = np.log(statistics(simulated)) - np.log(statistics(measured))
        if max(sizes) <= BOOTSTRAP_LIMIT:
            error = _bootstrap_error(measured, simulated, np.random.default_rng(seed))
        else:
            error = _batch_means_error(measured, simulated)
        half = error * stats.t.ppf(0.5 + LEVEL / 2, 1.5 * BLOCKS - 1)
        low, high = np.expm1(centre - half), np.expm1(centre + half)
    known = np.isfinite(low) & np.isfinite(high)
    return {
        name: (float(low[i]), float(high[i])) if known[i] else None
        for i, name in enumerate(STATISTICS)
    }


def _bootstrap_error(measured: Floats, simulated: Floats, rng: np.random.Generator) -> Floats:
    """Standard error of the log ratio of each statistic, ``(n_statistics,)``.

    n / (n - L) undoes what few blocks take from the spread.
    """
    n = max(len(measured), len(simulated))
    draws = resamples(n)
    logs = np.empty((len(STATISTICS), draws))
    chunk = max(1, _RESAMPLED_AT_ONCE // n)
    for first in range(0, draws, chunk):
        places = rng.random((min(chunk, draws - first), BLOCKS))
        a, b = (np.log(statistics(_resampled(v, places))) for v in (measured, simulated))
        logs[:, first : first + len(places)] = b - a
    error: Floats = logs.std(axis=-1, ddof=1) * math.sqrt(n / (n - block_length(n)))
    return error


def _resampled(values: Floats, places: Floats) -> Floats:
    """Series of blocks that start at ``places`` (0 to 1, ``(draws, BLOCKS)``) of the run."""
    n, length = len(values), block_length(len(values))
    starts = (places * (n - length + 1)).astype(np.int64)
    rows = (starts[:, :, None] + np.arange(length)).reshape(len(places), -1)[:, :n]
    drawn: Floats = values[rows]
    return drawn


def _batch_means_error(measured: Floats, simulated: Floats) -> Floats:
    """As ``_bootstrap_error``, by batch means of the influences; uneven sides by cells."""
    even = len(measured) == len(simulated)
    n = len(measured) if even else min(CELLS, len(measured), len(simulated))
    sides = zip(_influences(measured), _influences(simulated), strict=True)
    return np.sqrt([_mean_variance(_cells(b, n) - _cells(a, n)) for a, b in sides])


def _influences(values: Floats) -> Iterator[Floats]:
    """Influence of each value on the log of each of ``STATISTICS`` in turn, ``(n,)``."""
    yield values / values.mean() - 1
    ordered = np.sort(values)
    for percent in PERCENTILES.values():
        p = percent / 100
        quantile = np.percentile(ordered, percent)
        width = _spacing(p, len(values))
        low, high = (ordered[int(q * (len(values) - 1))] for q in (p - width, p + width))
        yield (p - (values <= quantile)) * (high - low) / (2 * width) / quantile


def _spacing(p: float, n: int) -> float:
    """Bofinger's half width in probability for the density at quantile ``p`` of ``n`` values."""
    z = float(stats.norm.ppf(p))
    density = float(stats.norm.pdf(z))
    width = float(n**-0.2 * (4.5 * density**4 / (2 * z * z + 1) ** 2) ** 0.2)
    return min(width, 0.9 * min(p, 1 - p))


def _cells(values: Floats, cells: int) -> Floats:
    """Means over ``cells`` successive parts of equal size, ``(cells,)``."""
    if cells == len(values):
        return values
    edges = np.linspace(0, len(values), cells + 1).astype(np.int64)
    means: Floats = np.add.reduceat(values, edges[:-1]) / np.diff(edges)
    return means


def _mean_variance(values: Floats) -> float:
    """Variance of the mean of a dependent series by overlapping batch means."""
    n, length = len(values), block_length(len(values))
    sums = np.concatenate([[0.0], np.cumsum(values - values.mean())])
    means = (sums[length:] - sums[:-length]) / length
    return float(means @ means * length / ((n - length) * (n - length + 1)))
