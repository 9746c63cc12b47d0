"""The CI gate: is this scorecard worse than the baseline?

An error has regressed only if it grew by more than is worth noticing (``Threshold``) and
stands out of what the real system does by itself:

noise known, same measured runs    abs(error) > k noise
noise known, measured anew         and growth > k sqrt(2) noise: both sides moved
no repeats, same measured run      the interval of the error lies beyond the old error
no repeats, measured anew          the intervals of the two errors do not meet in size

Lost coverage and new failures are verdicts of their own; scorecards of another workload,
deployment or vantage are not compared at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports import words
from reports.scorecard_file import FILE, read_scorecard, write_scorecard
from traces.errors import TraceError
from validation.samples import Metric
from validation.scorecard import Scorecard, Statistic

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
    refuse_incomparable(now, base, scorecard, baseline)
    findings = compare(now, base, threshold)
    return findings, _reason(findings, now)


def _reason(findings: list[Finding], now: Scorecard) -> str:
    if not findings:
        count = sum(len(m.statistics) for m in now.metrics.values())
        return f"pass: no regression in {count} statistics"
    more = f"; and {len(findings) - 1} more" if len(findings) > 1 else ""
    return f"{findings[0].kind}: {findings[0].text}{more}"


def refuse_incomparable(now: Scorecard, base: Scorecard, path: Path, baseline: Path) -> None:
    """Raise TraceError naming what the two scorecards do not have in common."""
    for what, get in (
        ("workload", lambda p: p["workload_hash"]),
        ("measured deployment", lambda p: p["measured"]["deployment_hash"]),
        ("vantage", lambda p: (p["measured"]["vantage"], p["simulated"]["vantage"])),
        ("comparison", lambda p: p["comparison"]),
    ):
        try:
            here, there = get(now.provenance), get(base.provenance)
        except (KeyError, TypeError):
            raise TraceError(f"{path}, {baseline}: no {what} recorded: not comparable") from None
        if here != there:
            raise TraceError(
                f"{path}: another {what} than {baseline}: not comparable; --update-baseline "
                "starts anew"
            )


def compare(now: Scorecard, base: Scorecard, threshold: Threshold) -> list[Finding]:
    """Every reason to fail, regressions first, the largest on top."""
    regressions = sorted(_regressions(now, base, threshold), key=lambda f: -f.size)
    return [*regressions, *_new_failures(now, base), *_lost_coverage(now, base)]


def _regressions(now: Scorecard, base: Scorecard, threshold: Threshold) -> Iterator[Finding]:
    same = _runs(now) == _runs(base)
    for name, errors in now.metrics.items():
        before = base.metrics.get(name)
        for key, statistic in errors.statistics.items():
            old = before.statistics.get(key) if before else None
            if old is None or statistic.error is None or old.error is None:
                continue
            if not _worth_noticing(statistic, old, errors.metric, threshold):
                continue
            if _evident(statistic, old, same, threshold.noise_multiple):
                text = (
                    f"{errors.metric.label} {key} is {words.direction(statistic.error)}, was "
                    f"{words.direction(old.error)}"
                )
                if statistic.noise is not None:
                    text += f" (noise {words.percent(statistic.noise)})"
                yield Finding("regression", text, abs(statistic.error) - abs(old.error))


def _runs(card: Scorecard) -> list[str]:
    sources = card.provenance
    return sorted(str(s["hash"]) for s in (sources["measured"], *sources.get("repeats", ())))


def _worth_noticing(now: Statistic, old: Statistic, metric: Metric, threshold: Threshold) -> bool:
    grown = abs(now.absolute) - abs(old.absolute)
    if metric.unit == "s" and grown <= threshold.seconds:
        return False
    return abs(now.error or 0.0) - abs(old.error or 0.0) > threshold.points


def _evident(now: Statistic, old: Statistic, same: bool, multiple: float) -> bool:
    """Whether the growth stands out of noise; see the module's table."""
    error, before = abs(now.error or 0.0), abs(old.error or 0.0)
    floors = [s.noise for s in (now, old) if s.noise is not None]
    if floors:
        noise = multiple * max(floors)
        return error > noise and (same or error - before > math.sqrt(2) * noise)
    nearest, _ = _size(now)
    return nearest > (before if same else _size(old)[1])


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
