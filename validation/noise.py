"""The noise floor: how far runs of the real system differ from one another.

The runs are MEASURED and its repeats: one workload, sent again. A simulated value that lies
where another run of the real system would lie cannot be told from one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation over the mean; None for fewer than two runs or a zero mean."""
    if len(values) < 2 or not (mean := float(np.mean(values))):
        return None
    return float(np.std(values, ddof=1)) / abs(mean)


def interval_by_run(values: Sequence[float], simulated: float) -> tuple[float | None, float | None]:
    """Interval of simulated / mean - 1 from the t interval of the runs' mean.

    A bound is None (unbounded) where the mean cannot be told from zero.
    """
    mean = float(np.mean(values))
    half = _t(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    low = simulated / (mean + half) - 1 if mean + half > 0 else None
    high = simulated / (mean - half) - 1 if mean - half > 0 else None
    return low, high


def like_another_run(values: Sequence[float], simulated: float) -> bool | None:
    """Whether ``simulated`` lies in the 95 % prediction interval of one more run.

    mean +- t(n - 1) * s * sqrt(1 + 1 / n); None for fewer than two runs.
    """
    if len(values) < 2:
        return None
    distance = abs(simulated - float(np.mean(values)))
    return bool(distance <= _t(len(values) - 1) * _one_more(values))


def detectable(values: Sequence[float]) -> float | None:
    """Relative error that ``like_another_run`` finds in 80 % of cases: its power, stated.

    (t_0.975 + t_0.8) * s * sqrt(1 + 1 / n) / mean, the usual approximation of the
    non-central t; None for fewer than two runs or a zero mean.
    """
    if len(values) < 2 or not (mean := float(np.mean(values))):
        return None
    quantiles = _t(len(values) - 1) + float(stats.t.ppf(POWER, len(values) - 1))
    return quantiles * _one_more(values) / abs(mean)


def _one_more(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / len(values))


def _t(degrees: int) -> float:
    return float(stats.t.ppf(0.5 + LEVEL / 2, degrees))
