"""The noise floor of runs of one workload: A/A, each pair of captures of the real system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from traces.bundle import Bundle, bundle_hash
from traces.errors import TraceError
from traces.metrics import Floats
from validation.compared import Metric, metric_named
from validation.errors import STATISTICS, distances, relative_error, statistics
from validation.noise import spread
from validation.pairing import pair, refuse_same_run, rows_with_ids
from validation.samples import View, finite


@dataclass(frozen=True, slots=True)
class FloorStatistic:
    """One statistic over the runs: mean in the metric's unit, noise, and the pairs' differences.

    ``noise`` is the sample standard deviation over the mean, ``smallest`` and ``largest``
    abs(b / a - 1) over all pairs; None where the mean is zero.
    """

    mean: float
    noise: float | None
    smallest: float | None
    largest: float | None


@dataclass(frozen=True, slots=True)
class MetricFloor:
    """The floor of one metric: its statistics, and the mean distances of the pairs."""

    metric: Metric
    statistics: dict[str, FloorStatistic]
    distances: dict[str, float]


@dataclass(frozen=True, slots=True)
class Floor:
    """The floor of one workload; ``requests`` finished in all ``runs``."""

    runs: list[str]
    requests: int
    metrics: dict[str, MetricFloor]


def noise_floor(bundles: Sequence[Bundle]) -> Floor:
    """Compare each pair of runs over the requests that finished in all.

    Raises TraceError for fewer than two runs, one given twice, or no request in common.
    """
    if len(bundles) < 2:
        names = ", ".join(str(b.path) for b in bundles) or "none"
        raise TraceError(f"noise: needs two runs of a workload or more, got {names}")
    refuse_same_run([(str(b.path), bundle_hash(b)) for b in bundles])
    ids = pair(bundles[0], bundles[1]).ids
    for bundle in bundles[2:]:
        ids = bundle.requests["request_id"].combine_chunks().take(rows_with_ids(bundle, ids))
    rows = [rows_with_ids(b, ids) for b in bundles]
    if not len(ids):
        raise TraceError(f"{bundles[-1].path}: no request finished in all runs")
    values = [View(b, r).values for b, r in zip(bundles, rows, strict=True)]
    shared = [n for n in values[0] if all(n in v for v in values)]
    metrics = {n: _metric(metric_named(n), values) for n in shared}
    return Floor([b.path.name for b in bundles], len(ids), metrics)


def _metric(metric: Metric, values: Sequence[Mapping[str, Floats]]) -> MetricFloor:
    runs = [v[metric.name] for v in values]
    by_run = [statistics(finite(r)) for r in runs]
    names = ("mean",) if metric.per == "run" else STATISTICS
    table = {name: _statistic([float(v[i]) for v in by_run]) for i, name in enumerate(names)}
    if metric.per == "run":
        return MetricFloor(metric, table, {})
    paired = metric.per == "request"
    apart = [distances(a, b, paired=paired) for a, b in combinations(runs, 2)]
    means = {n: float(np.mean([d[n] for d in apart if n in d])) for d in apart for n in d}
    return MetricFloor(metric, table, means)


def _statistic(values: Sequence[float]) -> FloorStatistic:
    apart = [relative_error(a, b) for a, b in combinations(values, 2)]
    sizes = [abs(d) for d in apart if d is not None]
    ends = (min(sizes), max(sizes)) if sizes else (None, None)
    return FloorStatistic(float(np.mean(values)), spread(values), *ends)
