"""The CI gate: is this scorecard worse than the baseline?

Only what users feel is gated (``GATED``); the other metrics explain. An error has regressed
only if it grew by more than is worth noticing (``Threshold``) and stands out of what the
real system does by itself (``validation.evidence``).

Lost coverage and new failures are verdicts of their own; scorecards of another workload,
deployment or vantage are not compared at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports import words
from reports.ladder import TITLES
from reports.scorecard_file import FILE, read_scorecard, refuse_incomparable, write_scorecard
from traces.errors import TraceError
from validation.compared import COMPARED, Metric
from validation.evidence import draws_of, evident, usual_noise
from validation.ladder import LADDER_METRICS
from validation.scorecard import Scorecard, Statistic

GATED = ("ttft", "tpot", "e2e", "throughput")
EXTRAPOLATED_MORE = 0.01  # growth of the share of extrapolated predictions that is a loss


@dataclass(frozen=True, slots=True)
class Threshold:
    """What is worth noticing: growth of abs(error) in ``points`` (fraction), and in seconds.

    ``noise_multiple`` is k of ``validation.evidence``.
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
    draws = draws_of(now, base)
    for name in GATED:
        errors, before = now.metrics.get(name), base.metrics.get(name)
        if errors is None or before is None:
            continue
        noise = usual_noise(errors, before, draws)
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
            yield found, evident(statistic, old, draws, noise, threshold.noise_multiple)


def _worth_noticing(now: Statistic, old: Statistic, metric: Metric, threshold: Threshold) -> bool:
    grown = abs(now.absolute) - abs(old.absolute)
    if metric.unit == "s" and grown <= threshold.seconds:
        return False
    return abs(now.error or 0.0) - abs(old.error or 0.0) > threshold.points


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
