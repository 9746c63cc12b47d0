"""The scorecard: every error of a simulation against a measurement, with its floor and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traces.bundle import Bundle, bundle_hash
from traces.metrics import Floats
from validation import provenance as origin
from validation.compared import Metric, metric_named
from validation.comparison import Comparison, compared
from validation.coverage import coverage, metric_coverage, repeat_coverage
from validation.errors import STATISTICS, distances, relative_error, statistics
from validation.intervals import BOOTSTRAP_LIMIT, error_intervals, method
from validation.noise import LEVEL, detectable, interval_by_run, like_another_run, spread
from validation.samples import finite

SCHEMA_VERSION = 1

Bounds = tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of one metric on both sides, in the metric's unit.

    ``measured`` is the mean over the measured runs, ``error`` simulated / measured - 1 (None
    where only measured is zero), ``ci`` its 95 % interval, ``noise`` the runs' standard
    deviation over their mean. ``like_another_run`` says whether simulated lies where one
    more run would; ``detectable`` is the error that this test finds four times in five.
    """

    measured: float
    simulated: float
    error: float | None
    ci: Bounds | None = None
    noise: float | None = None
    like_another_run: bool | None = None
    detectable: float | None = None

    @property
    def absolute(self) -> float:
        """simulated - measured, in the metric's unit."""
        return self.simulated - self.measured

    @property
    def noise_multiple(self) -> float | None:
        """How many noise floors the error is; None without a floor above zero."""
        if self.error is None or not self.noise:
            return None
        return abs(self.error) / self.noise


@dataclass(frozen=True, slots=True)
class MetricErrors:
    """All errors of one metric.

    ``distances`` are between MEASURED and SIMULATED, ``floor`` their mean over all pairs of
    measured runs (A/A). ``values`` counts what was compared on each side and in how many runs.
    """

    metric: Metric
    statistics: dict[str, Statistic]
    distances: dict[str, float] = field(default_factory=dict)
    floor: dict[str, float] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    interval: str = ""


@dataclass(frozen=True, slots=True)
class Scorecard:
    """The outcome of a validation; ``reports.scorecard_file`` writes and reads it.

    ``ladder`` is what ``validation.ladder`` found, empty if it was not asked for.
    """

    metrics: dict[str, MetricErrors]
    coverage: dict[str, Any]
    provenance: dict[str, Any]
    ladder: dict[str, Any] = field(default_factory=dict)


def build(
    measured: Bundle,
    simulated: Bundle,
    repeats: Sequence[Bundle] = (),
    *,
    allow_vantage_mix: bool = False,
    seed: int = 0,
) -> Scorecard:
    """Compare two bundles, with other runs of the measured workload for the noise floor.

    ``seed`` is the bootstrap's. Raises TraceError if they cannot be compared.
    """
    return score(compared(measured, simulated, repeats, allow_vantage_mix=allow_vantage_mix), seed)


def score(comparison: Comparison, seed: int = 0) -> Scorecard:
    """The scorecard of bundles whose requests are paired; ``seed`` is the bootstrap's."""
    real = [v.values for v in comparison.real]
    mine = comparison.views[1].values
    pairs = len(comparison.pairing.ids)
    sizes = [len(v.bundle.requests) for v in comparison.real]
    whole = [r for r, size in zip(real, sizes, strict=True) if size == pairs]
    metrics = {
        name: _metric_errors(metric_named(name), real, mine[name], whole, seed)
        for name in real[0]
        if name in mine
    }
    metrics = {name: errors for name, errors in metrics.items() if errors.statistics}
    told = coverage(comparison)
    told["metrics_missing"] = metric_coverage(real[0], mine, metrics)
    told["repeats"] = repeat_coverage(comparison.repeats, sizes[1:], pairs)
    sources = _provenance(comparison)
    sources["intervals"] = {
        "level": LEVEL,
        "by": "run" if comparison.repeats else "request",
        "seed": None if comparison.repeats else seed,
        "methods": {name: m.interval for name, m in metrics.items()},
        "bootstrap_limit": BOOTSTRAP_LIMIT,
    }
    return Scorecard(metrics, told, sources)


def _metric_errors(
    metric: Metric,
    real: Sequence[dict[str, Floats]],
    simulated: Floats,
    whole: Sequence[dict[str, Floats]],
    seed: int,
) -> MetricErrors:
    """Errors of one metric; ``whole`` are the runs that hold every compared request."""
    runs = [r[metric.name] for r in real if metric.name in r]
    paired = metric.per == "request"
    table = _statistics_table(metric, runs, simulated, seed)
    if metric.per == "run":
        interval = _by(metric, runs, simulated)
        return MetricErrors(metric, table, values={"runs": len(runs)}, interval=interval)
    others = [r[metric.name] for r in whole if metric.name in r]
    floors = [distances(a, b, paired=paired) for i, a in enumerate(others) for b in others[i + 1 :]]
    names = dict.fromkeys(n for f in floors for n in f)
    size = {"measured": len(finite(runs[0])), "simulated": len(finite(simulated))}
    return MetricErrors(
        metric,
        table,
        distances(runs[0], simulated, paired=paired),
        {n: float(np.mean([f[n] for f in floors if n in f])) for n in names},
        {**size, "runs": len(runs)},
        _by(metric, runs, simulated),
    )


def _by(metric: Metric, runs: Sequence[Floats], simulated: Floats) -> str:
    """What the metric's intervals rest on."""
    if len(runs) > 1:
        return f"Student's t over {len(runs)} runs"
    if metric.per == "run":
        return "none: one value a run, and no repeats"
    measured = runs[0]
    if metric.per == "request":
        both = np.isfinite(measured) & np.isfinite(simulated)
        measured, simulated = measured[both], simulated[both]
    return method(finite(measured), finite(simulated))


def _statistics_table(
    metric: Metric, runs: Sequence[Floats], simulated: Floats, seed: int
) -> dict[str, Statistic]:
    names = ("mean",) if metric.per == "run" else STATISTICS
    if metric.per == "request":
        both = np.isfinite(runs[0]) & np.isfinite(simulated)
        runs, simulated = [runs[0][both], *runs[1:]], simulated[both]
    runs, simulated = [finite(r) for r in runs], finite(simulated)
    if not len(simulated) or not all(len(r) for r in runs):
        return {}
    by_run = [statistics(r) for r in runs]
    mine = statistics(simulated)
    intervals: dict[str, Any] = {}
    if len(runs) == 1 and metric.per != "run":
        intervals = error_intervals(runs[0], simulated, seed)
    table = {}
    for i, name in enumerate(names):
        values = [float(v[i]) for v in by_run]
        mean, value = float(np.mean(values)), float(mine[i])
        table[name] = Statistic(
            mean,
            value,
            relative_error(mean, value),
            interval_by_run(values, value) if len(values) > 1 else intervals.get(name),
            spread(values),
            like_another_run(values, value),
            detectable(values),
        )
    return table


def _provenance(comparison: Comparison) -> dict[str, Any]:
    measured, simulated = comparison.measured, comparison.simulated
    profile = origin.profile(simulated)
    kinds = {measured.manifest.kind, simulated.manifest.kind}
    described = [origin.describe(*p) for p in zip(comparison.runs, comparison.digests, strict=True)]
    return {
        "comparison": "A/A"
        if kinds == {"measured"}
        else " against ".join((simulated.manifest.kind, measured.manifest.kind)),
        "holdout": origin.holdout(profile["fitted_on"], comparison.digests),
        "profile": profile,
        "workload_hash": origin.workload_hash(measured),
        "measured": described[0],
        "simulated": origin.describe(simulated, bundle_hash(simulated)),
        "repeats": described[1:],
    }
