"""``report.html``: one file that needs nothing else, not even a network.

What bundles say is escaped by jinja2 or embedded as JSON without ``<``; a content security
policy names the two scripts by their hash, so the browser runs no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from plotly.offline import get_plotlyjs

from reports import words
from reports.figures import by_percentile, distributions, over_time, sampling
from reports.ladder import LABELS, rows, sentences, waterfalls
from validation.bars import Judgement
from validation.samples import View
from validation.scorecard import MetricErrors, Scorecard, Statistic

TEMPLATES = Path(__file__).parent / "templates"
FIRST = ("ttft", "tpot", "e2e", "throughput")
DISTANCE_LABELS = {
    "ks": "KS distance",
    "wasserstein": "Wasserstein distance",
    "paired_mape": "mean error of a request",
    "paired_mae": "mean absolute error of a request",
}
STRIP_CAP = 0.5  # errors beyond 50 % are drawn at the edge


@dataclass(frozen=True, slots=True)
class Strip:
    """Positions, in percent of the width, of what the small error plot in a row shows."""

    at: float
    low: float
    high: float
    noise_low: float
    noise_high: float
    beyond: bool


def html(scorecard: Scorecard, views: Sequence[View], judgements: Sequence[Judgement]) -> str:
    """The report as one HTML page; ``views`` are what the charts are drawn from."""
    percentile_chart = by_percentile(views)
    ladder = scorecard.ladder
    groups = {
        "Attribution": waterfalls(ladder) if ladder else [],
        "Distributions": distributions(views),
        "Over time": over_time(views),
        "By percentile": [percentile_chart] if percentile_chart else [],
    }
    scripts = {"plotly": get_plotlyjs(), "report": (TEMPLATES / "report.js").read_text()}
    return template("report.html.j2").render(
        card=scorecard,
        words=words,
        ladder_rows=rows(scorecard) if ladder else [],
        ladder_lines=sentences(ladder) if ladder else [],
        ladder_labels=LABELS,
        verdict=words.verdict(scorecard, judgements),
        state=_state(judgements),
        lines=words.headline(scorecard),
        judgements=judgements,
        tables=[t for t in _tables(scorecard, judgements) if t["metrics"]],
        groups={name: charts for name, charts in groups.items() if charts},
        charts=embedded([asdict(c) for charts in groups.values() for c in charts]),
        sampling=sampling(),
        formulas=[m.metric for m in scorecard.metrics.values()],
        scripts=scripts,
        style=(TEMPLATES / "report.css").read_text(),
        hashes=[script_hash(text) for text in scripts.values()],
    )


def template(name: str) -> Template:
    """A page's template, which escapes what it is given."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def embedded(data: Any) -> str:
    """JSON that can stand inside a script element whatever strings it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def script_hash(text: str) -> str:
    """What a content security policy knows an inline script by."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _state(judgements: Sequence[Judgement]) -> str:
    if not judgements:
        return "plain"
    return "passed" if all(j.passed for j in judgements) else "failed"


def _tables(scorecard: Scorecard, judgements: Sequence[Judgement]) -> list[dict[str, Any]]:
    """The error table in two parts: what users feel, and what explains it."""
    bars = {(j.metric, j.statistic): j for j in judgements}

    def part(title: str, metrics: Sequence[MetricErrors]) -> dict[str, Any]:
        names = {m.metric.name for m in metrics}
        limit = strip_limit(metrics)
        shown = [_metric(m, bars, limit) for m in metrics]
        return {
            "title": title,
            "metrics": shown,
            "limit": words.percent(limit),
            "bars": any(b[0] in names for b in bars),
        }

    first = [m for name, m in scorecard.metrics.items() if name in FIRST]
    rest = [m for name, m in scorecard.metrics.items() if name not in FIRST]
    return [part("", first), part(", ".join(m.metric.label for m in rest), rest)]


def _metric(
    errors: MetricErrors, bars: dict[tuple[str, str], Judgement], limit: float
) -> dict[str, Any]:
    metric = errors.metric
    return {
        "metric": metric,
        "interval": errors.interval,
        "distances": [
            (DISTANCE_LABELS[name], _distance(errors, name, found), _distance(errors, name, floor))
            for name, found in errors.distances.items()
            for floor in (errors.floor.get(name),)
        ],
        "rows": [
            {
                "name": name,
                "statistic": s,
                "cells": words.cells(s, metric),
                "strip": strip(s, limit),
                "bar": bars.get((metric.name, name)),
            }
            for name, s in errors.statistics.items()
        ],
    }


def _distance(errors: MetricErrors, name: str, number: float | None) -> str | None:
    if number is None:
        return None
    if name == "ks":
        return f"{number:.3f}"
    if name == "paired_mape":
        return words.percent(number)
    return words.value(number, errors.metric)


def strip_limit(metrics: Sequence[MetricErrors]) -> float:
    """Half the width of a table's error plots: the largest error or bound up to ``STRIP_CAP``."""
    sizes = [0.05]
    for errors in metrics:
        for s in errors.statistics.values():
            sizes += [abs(v) for v in (s.error, s.noise, *(s.ci or ())) if v is not None]
    return min(max(sizes), STRIP_CAP)


def strip(s: Statistic, limit: float) -> Strip | None:
    """Where the parts of a row's error plot lie; None without an error."""
    if s.error is None:
        return None

    def place(error: float) -> float:
        return round(50 + 48 * min(max(error / limit, -1.0), 1.0), 2)

    low, high = s.ci or (s.error, s.error)
    noise = s.noise or 0.0
    return Strip(
        place(s.error),
        place(-limit if low is None else low),
        place(limit if high is None else high),
        place(-noise),
        place(noise),
        abs(s.error) > limit,
    )
