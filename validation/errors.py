"""One error statistic per function: numbers in, number out.

Percentiles are numpy's default (linear between order statistics), as ``vllm bench serve``
reports them. Distances are scipy's, or equal to them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

from traces.metrics import Floats

PERCENTILES: dict[str, float] = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
STATISTICS: tuple[str, ...] = ("mean", *PERCENTILES)
DISTANCES: tuple[str, ...] = ("ks", "wasserstein", "paired_mape", "paired_mae")


def statistics(values: Floats) -> Floats:
    """Mean and percentiles over the last axis, ``(len(STATISTICS), ...)``, unit of ``values``."""
    percentiles = np.percentile(values, list(PERCENTILES.values()), axis=-1)
    return np.concatenate([np.mean(values, axis=-1)[None], percentiles])


def relative_error(measured: float, simulated: float) -> float | None:
    """simulated / measured - 1; None where only the measured value is zero."""
    if measured == simulated:
        return 0.0
    return simulated / measured - 1 if measured else None


def ks(measured: Floats, simulated: Floats) -> float:
    """Largest distance between the two empirical distributions (Kolmogorov-Smirnov), 0 to 1."""
    return float(stats.ks_2samp(measured, simulated, method="asymp").statistic)


def wasserstein(measured: Floats, simulated: Floats) -> float:
    """Area between the two empirical distributions (earth mover's), in the values' unit.

    Of samples of one size it is the mean distance of their order statistics.
    """
    if len(measured) == len(simulated):
        return float(np.mean(np.abs(np.sort(measured) - np.sort(simulated))))
    return float(stats.wasserstein_distance(measured, simulated))


def paired_mape(measured: Floats, simulated: Floats) -> float | None:
    """Mean of abs(simulated / measured - 1) over pairs whose measured value is above zero."""
    above = measured > 0
    if not above.any():
        return None
    return float(np.mean(np.abs(simulated[above] / measured[above] - 1)))


def paired_mae(measured: Floats, simulated: Floats) -> float:
    """Mean of abs(simulated - measured) over pairs, in the values' unit."""
    return float(np.mean(np.abs(simulated - measured)))


POOLED: dict[str, Callable[[Floats, Floats], float | None]] = {"ks": ks, "wasserstein": wasserstein}
PAIRED: dict[str, Callable[[Floats, Floats], float | None]] = {
    "paired_mape": paired_mape,
    "paired_mae": paired_mae,
}


def distances(measured: Floats, simulated: Floats, *, paired: bool) -> dict[str, float]:
    """Distances of two samples by name; ``paired`` samples are aligned and may hold NaN.

    Pairs with a NaN on either side are left out. What is undefined is left out.
    """
    if paired:
        both = np.isfinite(measured) & np.isfinite(simulated)
        measured, simulated = measured[both], simulated[both]
    else:
        measured, simulated = measured[np.isfinite(measured)], simulated[np.isfinite(simulated)]
    if not len(measured) or not len(simulated):
        return {}
    chosen = POOLED | PAIRED if paired else POOLED
    found = {name: function(measured, simulated) for name, function in chosen.items()}
    return {name: value for name, value in found.items() if value is not None}
