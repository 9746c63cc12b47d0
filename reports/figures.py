"""The report's charts as data: lines and axes, drawn by ``report.js`` with plotly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traces.bundle import Bundle
from traces.metrics import Floats
from validation.pairing import pair, rows_with_ids
from validation.samples import COMPARED, Metric, View, finite, samples, view
from validation.series import Series, in_flight, over_steps

POINTS = 300
DISTRIBUTIONS = ("ttft", "tpot", "e2e", "queue", "itl", "step_time", "transfer")
BY_PERCENTILE = ("ttft", "tpot", "e2e")
LOG_ABOVE = 30.0  # p99 / p1 beyond which a linear axis hides one end


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: ``lines`` are dicts of role, x, y and, where it has one, name.

    ``role`` (measured, simulated, repeat, or a series' number) decides colour and dash.
    ``summary`` is what a reader who cannot see it is told.
    """

    key: str
    title: str
    note: str
    x: str
    y: str
    summary: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    log_x: bool = False
    percent_y: bool = False


@dataclass(frozen=True, slots=True)
class Runs:
    """The compared requests of each bundle: measured, simulated, then the repeats."""

    measured: View
    simulated: View
    repeats: list[View]
    values: list[Mapping[str, Floats]]

    @property
    def views(self) -> list[View]:
        """All views in the order of ``values``."""
        return [self.measured, self.simulated, *self.repeats]


def read_runs(bundles: Sequence[Bundle]) -> Runs:
    """Pair the first two of ``bundles`` (measured, simulated) and cut all to those requests."""
    measured, simulated, *repeats = bundles
    pairing = pair(measured, simulated)
    views = [view(measured, pairing.measured), view(simulated, pairing.simulated)]
    views += [view(b, rows_with_ids(b, pairing.ids)) for b in repeats]
    return Runs(views[0], views[1], views[2:], [samples(v) for v in views])


def distributions(runs: Runs) -> list[Chart]:
    """Cumulative distribution of each metric, one chart a metric."""
    return [
        _distribution(COMPARED[name], [v.get(name) for v in runs.values])
        for name in DISTRIBUTIONS
        if name in runs.values[0] and name in runs.values[1]
    ]


def _distribution(metric: Metric, values: Sequence[Floats | None]) -> Chart:
    known = [finite(v) * 1e3 if v is not None else np.empty(0) for v in values]
    medians = [float(np.median(v)) for v in known[:2]]
    low, high = np.percentile(known[0], [1, 99])
    return Chart(
        metric.name,
        metric.label,
        metric.formula,
        "ms",
        "",
        f"Cumulative distribution of {metric.label}: median {medians[0]:.4g} ms measured, "
        f"{medians[1]:.4g} ms simulated",
        [_line(role, *_ecdf(v)) for role, v in _drawn(known)],
        log_x=bool(low > 0 and high / low > LOG_ABOVE),
        percent_y=True,
    )


def _drawn(values: Sequence[Any]) -> list[tuple[str, Any]]:
    """Roles in drawing order: the repeats lie below, simulated on top."""
    measured, simulated, *repeats = values
    drawn = [("repeat", r) for r in repeats] + [("measured", measured), ("simulated", simulated)]
    return [(role, v) for role, v in drawn if v is not None and (isinstance(v, Series) or len(v))]


def _ecdf(values: Floats) -> tuple[Floats, Floats]:
    """Quantiles and their shares, thinned to ``POINTS``."""
    share = np.linspace(0, 1, min(POINTS, max(2, len(values))))
    return np.quantile(values, share), share


def over_time(runs: Runs) -> list[Chart]:
    """Requests in flight, batch size and KV use against time."""
    batch, kv = COMPARED["batch_size"], COMPARED["kv_use"]
    charts = [
        _over_time(runs, "in_flight", "Requests in flight", "arrived, not finished", in_flight),
        _over_time(
            runs, batch.name, batch.label, batch.formula, lambda v: over_steps(v, "batch_size")
        ),
        _over_time(runs, kv.name, kv.label, kv.formula, lambda v: over_steps(v, "kv_use")),
    ]
    return [c for c in charts if {"measured", "simulated"} <= {line["role"] for line in c.lines}]


def _over_time(
    runs: Runs, key: str, title: str, note: str, series: Callable[[View], Series | None]
) -> Chart:
    found = [series(v) for v in runs.views]
    return Chart(
        f"{key}_over_time",
        title,
        note,
        "seconds since the first arrival",
        "",
        f"{title} over time, measured and simulated",
        [_line(role, s.time_s, s.value) for role, s in _drawn(found)],
        percent_y=key == "kv_use",
    )


def by_percentile(runs: Runs) -> Chart | None:
    """Relative error at each percentile: where in the distribution the error sits."""
    percents = np.arange(1.0, 100.0)
    lines = []
    for i, name in enumerate(n for n in BY_PERCENTILE if all(n in v for v in runs.values[:2])):
        pairs = [v[name] for v in runs.values[:2]]
        both = np.isfinite(pairs[0]) & np.isfinite(pairs[1])
        measured, simulated = (np.percentile(v[both], percents) for v in pairs)
        above = measured > 0
        error = simulated[above] / measured[above] - 1
        lines.append(_line(f"series{i}", percents[above], error) | {"name": COMPARED[name].label})
    return Chart(
        "by_percentile",
        "Error by percentile",
        "simulated / measured \N{MINUS SIGN} 1 at each percentile of each metric",
        "percentile",
        "error",
        "Relative error of simulated against measured at each percentile",
        lines,
        percent_y=True,
    ) if lines else None  # fmt: skip


def _line(role: str, x: Floats, y: Floats) -> dict[str, Any]:
    return {"role": role, "x": _short(x), "y": _short(y)}


def _short(values: Floats) -> list[float | None]:
    """Six significant digits, enough for any screen; None (a gap) for what is no number."""
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]
