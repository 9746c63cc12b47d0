"""The scorecard: every error of a simulation against a measurement, with its floor and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traces.bundle import Bundle, bundle_hash
from traces.errors import TraceError
from traces.metrics import Floats
from validation import provenance as origin
from validation.coverage import coverage, metric_coverage, repeat_coverage
from validation.errors import STATISTICS, distances, relative_error, statistics
from validation.intervals import BOOTSTRAP_LIMIT, error_intervals, method
from validation.noise import LEVEL, detectable, interval_by_run, like_another_run, spread
from validation.pairing import pair, refuse_same_run, rows_with_ids
from validation.samples import COMPARED, Metric, finite, samples, view

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

    ``seed`` is the bootstrap's. Raises TraceError if they cannot be compared: no request in
    common, different vantages (unless allowed), or a repeat that is one of the other runs.
    """
    _check_vantage([measured, simulated, *repeats], allow_vantage_mix)
    runs = [measured, *repeats]
    digests = [bundle_hash(b) for b in runs]
    refuse_same_run([(str(b.path), d) for b, d in zip(runs, digests, strict=True)])
    pairing = pair(measured, simulated)
    rows = [pairing.measured, *(rows_with_ids(b, pairing.ids) for b in repeats)]
    for bundle, found in zip(repeats, rows[1:], strict=True):
        if not len(found):
            raise TraceError(f"--repeats {bundle.path}: no request in common with {measured.path}")
    real = [samples(view(b, r)) for b, r in zip(runs, rows, strict=True)]
    mine = samples(view(simulated, pairing.simulated))
    whole = [r for r, found in zip(real, rows, strict=True) if len(found) == len(pairing.ids)]
    metrics = {
        name: _metric_errors(COMPARED[name], real, mine[name], whole, seed)
        for name in COMPARED
        if name in real[0] and name in mine
    }
    metrics = {name: errors for name, errors in metrics.items() if errors.statistics}
    told = coverage(measured, simulated, repeats, pairing)
    told["metrics_missing"] = metric_coverage(real[0], mine, metrics)
    told["repeats"] = repeat_coverage(repeats, [len(r) for r in rows[1:]], len(pairing.ids))
    sources = _provenance(runs, digests, simulated)
    sources["intervals"] = {
        "level": LEVEL,
        "by": "run" if repeats else "request",
        "seed": None if repeats else seed,
        "methods": {name: m.interval for name, m in metrics.items()},
        "bootstrap_limit": BOOTSTRAP_LIMIT,
    }
    return Scorecard(metrics, told, sources)


def _check_vantage(bundles: Sequence[Bundle], allowed: bool) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        if other.manifest.vantage != first.manifest.vantage and not allowed:
            raise TraceError(
                f"{other.path}: seen by the {other.manifest.vantage}, {first.path} by the "
                f"{first.manifest.vantage}: their times differ by the network and the front "
                "end; --allow-vantage-mix compares them all the same"
            )


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


def _provenance(
    runs: Sequence[Bundle], digests: Sequence[str], simulated: Bundle
) -> dict[str, Any]:
    profile = origin.profile(simulated)
    kinds = {runs[0].manifest.kind, simulated.manifest.kind}
    return {
        "comparison": "A/A"
        if kinds == {"measured"}
        else " against ".join((simulated.manifest.kind, runs[0].manifest.kind)),
        "holdout": origin.holdout(profile["fitted_on"], digests),
        "profile": profile,
        "workload_hash": origin.workload_hash(runs[0]),
        "measured": origin.describe(runs[0], digests[0]),
        "simulated": origin.describe(simulated, bundle_hash(simulated)),
        "repeats": [origin.describe(b, d) for b, d in zip(runs[1:], digests[1:], strict=True)],
    }
