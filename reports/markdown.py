"""``report.md``: the errors in a table short enough for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from reports import words
from reports.ladder import LABELS, rows, sentences
from reports.tables import escape
from validation.bars import Judgement
from validation.scorecard import MetricErrors, Scorecard

SHOWN = ("mean", "p50", "p90", "p99")


def markdown(scorecard: Scorecard, judgements: Sequence[Judgement]) -> str:
    """The report as Markdown: the headline metrics open, the others folded away."""
    names = [escape(scorecard.provenance[side]["name"]) for side in ("simulated", "measured")]
    lines = [f"### {names[0]} against {names[1]}", ""]
    lines += [f"**{escape(words.verdict(scorecard, judgements))}**", ""]
    lines += [f"- {escape(line)}" for line in words.headline(scorecard)]
    failed = [j for j in judgements if not j.passed]
    if failed:
        lines += ["", "Bars exceeded:", ""]
        lines += [f"- {words.label(scorecard, j.metric)} {j.statistic}: {j.reason}" for j in failed]
    first = [m for name, m in scorecard.metrics.items() if name in words.HEADLINE]
    rest = [m for name, m in scorecard.metrics.items() if name not in words.HEADLINE]
    if first:
        lines += ["", *_table(first)]
    if scorecard.ladder:
        lines += ["", "**What explains the error of the means**", ""]
        lines += [f"- {escape(line)}" for line in sentences(scorecard.ladder)]
        head = [("swapped in", *LABELS, "what"), ("---", *["---:"] * len(LABELS), "---")]
        lines += ["", *_rows([*head, *rows(scorecard)])]
    if rest:
        summary = ", ".join(m.metric.label for m in rest)
        lines += ["", f"<details><summary>{summary}</summary>", "", *_table(rest), "", "</details>"]
    return "\n".join([*lines, ""])


def _table(metrics: Sequence[MetricErrors]) -> list[str]:
    table = [("metric", "", *words.COLUMNS), ("---", "---", *["---:"] * len(words.COLUMNS))]
    for errors in metrics:
        shown = [(n, s) for n, s in errors.statistics.items() if n in SHOWN]
        for i, (name, s) in enumerate(shown):
            metric = errors.metric
            table.append((metric.label if not i else "", name, *words.cells(s, metric)))
    return _rows(table)


def _rows(table: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in table]
