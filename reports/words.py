"""Numbers and verdicts in words, the same in HTML, Markdown and on the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from validation.bars import Judgement
from validation.compared import Metric
from validation.scorecard import Bounds, Scorecard, Statistic

HEADLINE = ("ttft", "tpot", "e2e")
MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"


def signed(text: str) -> str:
    """A number's text with a real minus sign."""
    return text.replace("-", MINUS)


def value(number: float, metric: Metric, *, sign: bool = False) -> str:
    """A value of a metric with its unit; ``sign`` for differences."""
    flag = "+" if sign else ""
    if metric.unit == "s":
        text = f"{number:{flag},.2f} s" if abs(number) >= 10 else _ms(number * 1e3, flag)
    elif metric.unit == "frac":
        places = 1 if abs(number) >= 0.0095 else 3
        text = f"{number * 100:{flag}.{places}f} " + ("pp" if sign else "%")
    else:
        text = f"{number:{flag},.1f}" if abs(number) >= 100 else f"{number:{flag}.2f}"
        text += f" {metric.unit}" if metric.unit != "requests" else ""
    return signed(text)


def _ms(number: float, flag: str) -> str:
    size = abs(number)
    places = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 1 else 3
    return f"{number:{flag},.{places}f} ms"


def percent(fraction: float | None, *, sign: bool = False) -> str:
    """A fraction in percent with two or three significant digits."""
    if fraction is None:
        return NONE
    if not fraction:
        return "0 %"
    places = 0 if abs(fraction) >= 0.9995 else 1 if abs(fraction) >= 0.0095 else 2
    return signed(f"{fraction * 100:{'+' if sign else ''}.{places}f} %")


def interval(bounds: Bounds | None) -> str:
    """An interval of errors, unbounded sides as infinity."""
    if bounds is None:
        return NONE
    low, high = bounds
    left = f"{MINUS}\N{INFINITY}" if low is None else percent(low, sign=True)
    right = "+\N{INFINITY}" if high is None else percent(high, sign=True)
    return f"{left} to {right}"


def multiple(statistic: Statistic) -> str:
    """The error in noise floors."""
    times = statistic.noise_multiple
    return NONE if times is None else f"{times:,.1f}{TIMES}"


COLUMNS = (
    "measured", "simulated", "error", "absolute", "95 % interval", "noise", "error / noise",
)  # fmt: skip


def cells(statistic: Statistic, metric: Metric) -> tuple[str, ...]:
    """One row of the error table: a text for each of ``COLUMNS``."""
    return (
        value(statistic.measured, metric),
        value(statistic.simulated, metric),
        percent(statistic.error, sign=True),
        value(statistic.absolute, metric, sign=True),
        interval(statistic.ci),
        percent(statistic.noise),
        multiple(statistic),
    )


def direction(error: float | None) -> str:
    """``7.1 % high``, ``7.1 % low`` or ``exact``."""
    if error is None:
        return "undefined"
    if not error:
        return "exact"
    return f"{percent(abs(error))} {'high' if error > 0 else 'low'}"


def verdict(scorecard: Scorecard, judgements: Sequence[Judgement]) -> str:
    """One sentence: whether the bars hold; without bars, how large the errors are."""
    if not judgements:
        found = [scorecard.metrics[n] for n in HEADLINE if n in scorecard.metrics]
        means = [f"{m.metric.label} {direction(m.statistics['mean'].error)}" for m in found]
        return f"On average: {', '.join(means)}." if means else "Nothing to compare."
    failed = [j for j in judgements if not j.passed]
    if not failed:
        return f"Passed: {_all(len(judgements))}."
    worst = max(failed, key=_excess)
    return (
        f"Failed: {len(failed)} of {len(judgements)} bars exceeded, worst "
        f"{label(scorecard, worst.metric)} {worst.statistic} ({worst.reason})."
    )


def _all(bars: int) -> str:
    return "the one bar holds" if bars == 1 else f"all {bars} bars hold"


def _excess(judgement: Judgement) -> float:
    if judgement.error is None:
        return float("inf")
    return abs(judgement.error) / max(judgement.allowed, 1e-12)


def label(scorecard: Scorecard, metric: str) -> str:
    """A metric's label, its name if it was not compared."""
    errors = scorecard.metrics.get(metric)
    return errors.metric.label if errors else metric


def largest(scorecard: Scorecard) -> str | None:
    """The largest error among the headline metrics."""
    found = [
        (abs(s.error), m.metric, name, s)
        for key in HEADLINE
        if (m := scorecard.metrics.get(key))
        for name, s in m.statistics.items()
        if s.error is not None
    ]
    if not found:
        return None
    size, metric, name, s = max(found, key=lambda f: f[0])
    if not size:
        return "Every statistic is equal on both sides."
    return (
        f"Largest error: {metric.label} {name}, {direction(s.error)} "
        f"({value(s.absolute, metric, sign=True)})."
    )


def holdout(scorecard: Scorecard) -> str:
    """Whether the simulation had seen the run it is compared with."""
    sources = scorecard.provenance
    if sources.get("comparison") == "A/A":
        return "A/A: two captures of the real system, no simulation."
    fitted = sources.get("holdout")
    if fitted is None:
        return "Not known whether the simulator was fitted on this run."
    if fitted:
        return "Hold-out: the operator profile was not fitted on this run."
    return (
        "Not a hold-out: the operator profile was fitted on this very run, so these errors do "
        "not say how well it predicts others."
    )


def floor(scorecard: Scorecard) -> str:
    """How many statistics cannot be told from another run."""
    tests = [
        s.like_another_run
        for m in scorecard.metrics.values()
        for s in m.statistics.values()
        if s.like_another_run is not None
    ]
    if not tests:
        return "No repeats: the noise floor is unknown."
    runs = 1 + len(scorecard.provenance.get("repeats", ()))
    return (
        f"{sum(tests)} of {len(tests)} statistics cannot be told from another run of the real "
        f"system ({runs} runs)."
    )


def requests_line(counts: dict[str, Any]) -> str:
    """How many requests were compared, and what happened to the others."""
    sides = [counts["measured"], counts["simulated"]]
    total = max(s["requests"] - s["warmups"] for s in sides)
    parts = [f"{counts['compared']:,} of {total:,} requests compared"]
    if warmups := max(s["warmups"] for s in sides):
        parts.append(f"{warmups:,} warm-ups left out")
    for name, side in zip(("measured", "simulated"), sides, strict=True):
        if side["unmatched"]:
            parts.append(f"{side['unmatched']:,} only in {name}")
        parts += [f"{n:,} {status} in {name}" for status, n in side["failed"].items()]
    if differ := counts["token_counts_differ"]:
        parts.append(f"{differ:,} of other lengths")
    return "; ".join(parts) + "."


def other_workload(counts: dict[str, Any]) -> str | None:
    """A warning where most pairs are not one request: ids alone do not make a workload."""
    if 2 * counts["token_counts_differ"] <= counts["compared"]:
        return None
    return (
        f"Perhaps not one workload: {counts['token_counts_differ']:,} of "
        f"{counts['compared']:,} pairs have other lengths on the two sides."
    )


def extrapolated(scorecard: Scorecard) -> str:
    """The share of predictions outside the fitted range."""
    found = scorecard.coverage.get("predictions") or {}
    if not found:
        return "Extrapolation: not recorded."
    parts = [
        f"{percent(p['share'])} of {p['predictions']:,} {name} predictions" + _outside(p)
        for name, p in found.items()
    ]
    return f"Extrapolated: {', '.join(parts)}."


def _outside(counted: Mapping[str, Any]) -> str:
    """Of which layers or ranges, where the simulator told."""
    names = counted.get("outside")
    return f" ({', '.join(f'{name} {n:,}' for name, n in names.items())})" if names else ""


def ignored(scorecard: Scorecard) -> str:
    """Features one side had and the other did not honour."""
    lists = scorecard.coverage["ignored"]
    names = list(dict.fromkeys([*lists["simulated"], *lists["measured"]]))
    return f"Ignored: {', '.join(names)}." if names else "No captured feature was ignored."


def headline(scorecard: Scorecard) -> list[str]:
    """The sentences below the verdict, most important first."""
    lines = [
        other_workload(scorecard.coverage["requests"]),
        largest(scorecard),
        holdout(scorecard),
        floor(scorecard),
        requests_line(scorecard.coverage["requests"]),
        extrapolated(scorecard),
        ignored(scorecard),
    ]
    if differs := scorecard.coverage.get("deployment_differs"):
        lines.append(f"Deployments differ: {', '.join(differs)}.")
    return [line for line in lines if line]
