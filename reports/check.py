"""The CI gate: is this scorecard worse than the baseline?

Only what users feel is gated (``GATED``); the other metrics explain. An error has regressed
only if it grew by more than is worth noticing (``Threshold``) and stands out of what the
real system does by itself:

same measured runs, with repeats   abs(error) > k noise: only the simulator has moved
same measured run, no repeats      the interval of the error lies beyond the old error
measured anew, or A/A              abs(error) > k s and growth > t s sqrt(f)

In the last row s is the noise pooled over both scorecards' repeats and over how far measured
moved between them, at least the median over the metric's statistics (of many estimates from
few runs some are small by chance); f counts the runs whose chance went into the difference,
each mean of n runs with 1 / n, shared runs not at all; t is Student's at 95 %, two-sided.

Lost coverage and new failures are verdicts of their own; scorecards of another workload,
deployment or vantage are not compared at all.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from reports import words
from reports.ladder import TITLES
from reports.scorecard_file import FILE, read_scorecard, refuse_incomparable, write_scorecard
from traces.errors import TraceError
from validation.compared import COMPARED, Metric
from validation.ladder import LADDER_METRICS
from validation.scorecard import MetricErrors, Scorecard, Statistic

GATED = ("ttft", "tpot", "e2e", "throughput")
EXTRAPOLATED_MORE = 0.01  # growth of the share of extrapolated predictions that is a loss


@dataclass(frozen=True, slots=True)
class Threshold:
    """What is worth noticing: growth of abs(error) in ``points`` (fraction), and in seconds.

    ``noise_multiple`` is k above.
    """

    points: float = 0.02
    seconds: float = 1e-4
    noise_multiple: float = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason to fail: ``kind`` is regression, lost coverage or new failures."""

    kind: str
    text: str
    size: float = 0.0
    metric: str = ""


def run_check(
    scorecard: Path, baseline: Path, *, update: bool, threshold: Threshold
) -> tuple[list[Finding], str]:
    """Compare two scorecard files (or make the first the baseline); findings and one line.

    Raises TraceError if one cannot be read or the two are not comparable.
    """
    now = read_scorecard(scorecard)
    baseline = baseline / FILE if baseline.is_dir() else baseline
    if update:
        write_scorecard(now, baseline)
        return [], f"baseline updated: {baseline}"
    if not baseline.exists():
        raise TraceError(f"{baseline}: no baseline there; make one with --update-baseline")
    base = read_scorecard(baseline)
    refuse_incomparable(now, base, (scorecard, baseline), "; --update-baseline starts anew")
    findings = compare(now, base, threshold)
    return findings, _reason(findings, now, base, threshold)


def _reason(findings: list[Finding], now: Scorecard, base: Scorecard, threshold: Threshold) -> str:
    if not findings:
        count = sum(len(m.statistics) for name, m in now.metrics.items() if name in GATED)
        grown = sum(not evident for _, evident in _growths(now, base, threshold))
        within = f" ({grown} grew, but not beyond the noise)" if grown else ""
        return f"pass: no regression in {count} statistics{within}"
    more = f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    cause = f"; {text}" if (text := _cause(findings[0], now, base)) else ""
    return f"{findings[0].kind}: {findings[0].text}{cause}{more}"


def _cause(finding: Finding, now: Scorecard, base: Scorecard) -> str:
    """What the ladders say of a regression: the term that changed most since the baseline."""
    ladders = [card.ladder.get("terms", []) for card in (now, base)]
    if not finding.metric or not all(ladders):
        return ""
    metric = finding.metric if finding.metric in LADDER_METRICS else "e2e"
    here, there = ({t["name"]: t[metric] for t in terms} for terms in ladders)
    changes = {name: value - there.get(name, 0.0) for name, value in here.items()}
    name = max(changes, key=lambda n: abs(changes[n]))
    change = words.value(changes[name], COMPARED[metric], sign=True)
    return f"ladder: {TITLES[name].lower()} {change} of mean {COMPARED[metric].label}"


def compare(now: Scorecard, base: Scorecard, threshold: Threshold) -> list[Finding]:
    """Every reason to fail, regressions first, the largest on top."""
    grown = [f for f, evident in _growths(now, base, threshold) if evident]
    regressions = sorted(grown, key=lambda f: -f.size)
    return [*regressions, *_new_failures(now, base), *_lost_coverage(now, base)]


def _growths(
    now: Scorecard, base: Scorecard, threshold: Threshold
) -> Iterator[tuple[Finding, bool]]:
    """Errors that grew by more than is worth noticing, and whether the evidence is there."""
    draws = _draws(now, base)
    for name in GATED:
        errors, before = now.metrics.get(name), base.metrics.get(name)
        if errors is None or before is None:
            continue
        noise = _usual_noise(errors, before, draws)
        for key, statistic in errors.statistics.items():
            old = before.statistics.get(key)
            if old is None or statistic.error is None or old.error is None:
                continue
            if not _worth_noticing(statistic, old, errors.metric, threshold):
                continue
            text = (
                f"{errors.metric.label} {key} is {words.direction(statistic.error)}, was "
                f"{words.direction(old.error)}"
            )
            if statistic.noise is not None:
                text += f" (noise {words.percent(statistic.noise)})"
            found = Finding("regression", text, abs(statistic.error) - abs(old.error), name)
            yield found, _evident(statistic, old, draws, noise, threshold.noise_multiple)


@dataclass(frozen=True, slots=True)
class _Draws:
    """The runs of the real system behind two scorecards.

    ``runs`` of each (now, base), ``distinct`` in both; ``factor`` is the variance of the
    difference of their means in variances of one run, 0 for the same runs; ``simulated``
    that of the simulated sides: 2 where both are captures of the real system.
    """

    runs: tuple[int, int]
    distinct: int
    factor: float
    simulated: float


def _draws(now: Scorecard, base: Scorecard) -> _Draws:
    here, there = (
        {str(s["hash"]) for s in (p["measured"], *p.get("repeats", ()))}
        for p in (now.provenance, base.provenance)
    )
    shared = len(here & there)
    factor = 1 / len(here) + 1 / len(there) - 2 * shared / (len(here) * len(there))
    hashes = {c.provenance["simulated"]["hash"] for c in (now, base)}
    real = now.provenance.get("comparison") == "A/A" and len(hashes) > 1
    factor = 0.0 if here == there else factor
    return _Draws((len(here), len(there)), len(here | there), factor, 2.0 * real)


def _worth_noticing(now: Statistic, old: Statistic, metric: Metric, threshold: Threshold) -> bool:
    grown = abs(now.absolute) - abs(old.absolute)
    if metric.unit == "s" and grown <= threshold.seconds:
        return False
    return abs(now.error or 0.0) - abs(old.error or 0.0) > threshold.points


def _usual_noise(now: MetricErrors, old: MetricErrors, draws: _Draws) -> float:
    """Median of the pooled noise over a metric's statistics; 0 if nothing tells."""
    pairs = ((s, old.statistics.get(key)) for key, s in now.statistics.items())
    noises = [_pooled_noise(s, o, draws) for s, o in pairs if o is not None]
    return statistics.median([n for n in noises if n is not None] or [0.0])


def _evident(now: Statistic, old: Statistic, draws: _Draws, usual: float, multiple: float) -> bool:
    """Whether the growth stands out of noise; see the module's table."""
    error, before = abs(now.error or 0.0), abs(old.error or 0.0)
    if not draws.factor and not draws.simulated:
        if now.noise is not None:
            return error > multiple * now.noise
        return _size(now)[0] > before
    noise = _pooled_noise(now, old, draws)
    if noise is None:
        return False
    if now.noise is None and old.noise is None and _size(now)[0] <= _size(old)[1]:
        return False  # without repeats the intervals must not meet either
    noise = max(noise, usual)
    t = float(stats.t.ppf(0.975, draws.distinct - 1))
    spread = noise * math.sqrt(draws.factor + draws.simulated)
    return error > multiple * noise and error - before > t * spread


def _pooled_noise(now: Statistic, old: Statistic, draws: _Draws) -> float | None:
    """Noise of one run as a fraction, with a degree of freedom less than runs; None for one."""
    parts = [
        (s.noise**2, n - 1)
        for s, n in zip((now, old), draws.runs, strict=True)
        if s.noise is not None
    ]
    if draws.factor and old.measured:
        parts.append(((now.measured / old.measured - 1) ** 2 / draws.factor, 1))
    weight = sum(n for _, n in parts)
    return math.sqrt(sum(v * n for v, n in parts) / weight) if weight else None


def _size(statistic: Statistic) -> tuple[float, float]:
    """Smallest and largest abs(error) that the interval allows."""
    error = statistic.error or 0.0
    low, high = statistic.ci or (error, error)
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    inside = low <= 0 <= high
    return 0.0 if inside else min(abs(low), abs(high)), max(abs(low), abs(high))


def _lost_coverage(now: Scorecard, base: Scorecard) -> Iterator[Finding]:
    def lost(text: str) -> Finding:
        return Finding("lost coverage", text)

    for name, errors in base.metrics.items():
        current = now.metrics.get(name)
        if current is None:
            yield lost(f"{errors.metric.label} is no longer compared")
            continue
        for key, old in errors.statistics.items():
            statistic = current.statistics.get(key)
            if statistic is None or (statistic.error is None and old.error is not None):
                yield lost(f"{errors.metric.label} {key} has no error any more")
    if base.provenance.get("repeats") and not now.provenance.get("repeats"):
        yield lost("no repeats any more: the noise floor is unknown")
    counts = [_requests(card).get("compared", 0) for card in (base, now)]
    if counts[1] < counts[0]:
        yield lost(f"{counts[1]:,} requests compared, were {counts[0]:,}")
    for name, share in _extrapolated(now).items():
        before = _extrapolated(base).get(name, 0.0)
        if share - before > EXTRAPOLATED_MORE:
            was, text = words.percent(before), words.percent(share)
            yield lost(f"{text} of {name} predictions extrapolated, was {was}")
    known = {i for side in _ignored(base).values() for i in side}
    for feature in dict.fromkeys(i for side in _ignored(now).values() for i in side):
        if feature not in known:
            yield lost(f"{feature} is now ignored")
    if base.provenance.get("holdout") and not now.provenance.get("holdout"):
        yield lost("no longer a hold-out")


def _new_failures(now: Scorecard, base: Scorecard) -> Iterator[Finding]:
    for side in ("measured", "simulated"):
        here, there = (
            sum(_requests(card).get(side, {}).get("failed", {}).values()) for card in (now, base)
        )
        if here > there:
            yield Finding(
                "new failures", f"{here:,} requests did not finish in {side}, were {there:,}"
            )


def _requests(card: Scorecard) -> dict[str, Any]:
    return dict(card.coverage.get("requests", {}))


def _ignored(card: Scorecard) -> dict[str, list[str]]:
    return dict(card.coverage.get("ignored", {}))


def _extrapolated(card: Scorecard) -> dict[str, float]:
    found = card.coverage.get("predictions", {})
    return {name: p["share"] for name, p in found.items() if p.get("share") is not None}
