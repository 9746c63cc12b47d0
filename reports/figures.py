"""The report's charts as data: lines and axes, drawn by ``report.js`` with plotly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from traces.metrics import Floats
from validation.compared import COMPARED, Metric, family_of, metric_named
from validation.samples import View, finite
from validation.series import POINTS as INTERVALS
from validation.series import Series, in_flight, over_steps, throughput

POINTS = 300
NOT_DISTRIBUTED = ("batch_size", "kv_use", "throughput")  # over time, or one number
OVER_TIME = ("batch_size", "kv_use")
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


def sampling() -> str:
    """What the charts leave out, in words."""
    return (
        f"Charts are thinned: distributions are drawn through {POINTS} quantiles, values over "
        f"time are means of {INTERVALS} equal intervals. The tables are of every value."
    )


def distributions(views: Sequence[View]) -> list[Chart]:
    """Cumulative distribution of each metric, one chart a metric.

    ``views`` are of measured, simulated and the repeats, here and below.
    """
    return [
        _distribution(metric_named(name), [v.values.get(name) for v in views])
        for name in views[0].values
        if name in views[1].values and family_of(name) not in NOT_DISTRIBUTED
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


def over_time(views: Sequence[View]) -> list[Chart]:
    """Requests in flight, throughput, batch size and KV use against time."""
    charts = [
        _over_time(views, "in_flight", "Requests in flight", "arrived, not finished", in_flight)
    ]
    rate = COMPARED["throughput"]
    note = "output tokens a second, spread evenly over each decode"
    charts.append(_over_time(views, rate.name, rate.label, note, throughput))
    for name in views[0].of_steps:
        if family_of(name) not in OVER_TIME:
            continue
        metric = metric_named(name)

        def of_steps(view: View, name: str = name) -> Series | None:
            return over_steps(view, name)

        charts.append(_over_time(views, name, metric.label, metric.formula, of_steps))
    return [c for c in charts if {"measured", "simulated"} <= {line["role"] for line in c.lines}]


def _over_time(
    views: Sequence[View], key: str, title: str, note: str, series: Callable[[View], Series | None]
) -> Chart:
    found = [series(v) for v in views]
    return Chart(
        f"{key}_over_time",
        title,
        note,
        "seconds since the first arrival",
        "",
        f"{title} over time, measured and simulated",
        [_line(role, s.time_s, s.value) for role, s in _drawn(found)],
        percent_y=family_of(key) == "kv_use",
    )


def by_percentile(views: Sequence[View]) -> Chart | None:
    """Relative error at each percentile: where in the distribution the error sits."""
    percents = np.arange(1.0, 100.0)
    lines = []
    sides = [v.values for v in views[:2]]
    for i, name in enumerate(n for n in BY_PERCENTILE if all(n in side for side in sides)):
        pairs = [side[name] for side in sides]
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
