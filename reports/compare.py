"""``frontier compare``: errors of several scorecards side by side: before and after, over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from reports import words
from reports.scorecard_file import read_scorecard, refuse_incomparable
from reports.tables import console, markdown_lines
from validation.scorecard import Scorecard, Statistic

SHOWN = ("mean", "p50", "p90", "p99")
METRICS = ("ttft", "tpot", "e2e", "throughput")


def read_cards(paths: Sequence[Path]) -> list[tuple[str, Scorecard]]:
    """Scorecards by the name of their file or directory, in the order given.

    Raises TraceError unless all are held against one workload on one deployment.
    """
    cards = [(_name(path), read_scorecard(path)) for path in paths]
    for path, (_, card) in zip(paths, cards, strict=True):
        refuse_incomparable(card, cards[0][1], (path, paths[0]))
    return cards


def _name(path: Path) -> str:
    return path.parent.name if path.name == "scorecard.json" else path.stem


def head(cards: Sequence[tuple[str, Scorecard]]) -> list[str]:
    """Titles of the columns; those of two scorecards or more end with the change."""
    change = ["last / first"] if len(cards) > 1 else []
    return ["error of", "", *(name for name, _ in cards), *change, "noise"]


def rows(cards: Sequence[tuple[str, Scorecard]]) -> list[list[str]]:
    """A row a statistic: its error in each scorecard, and the last one's size over the first's."""
    table = [["hold-out", "", *(_holdout(card) for _, card in cards), *[""] * (len(cards) > 1), ""]]
    for metric in METRICS:
        known = [card.metrics.get(metric) for _, card in cards]
        for key in SHOWN:
            found = [m.statistics.get(key) if m else None for m in known]
            if not any(found):
                continue
            label = next(m.metric.label for m in known if m)
            first = key == SHOWN[0]
            errors = [words.percent(s.error if s else None, sign=True) for s in found]
            change = [_change(found[0], found[-1])] if len(found) > 1 else []
            noise = max((s.noise for s in found if s and s.noise is not None), default=None)
            table.append([label if first else "", key, *errors, *change, words.percent(noise)])
    return table


def _holdout(card: Scorecard) -> str:
    fitted = card.provenance.get("holdout")
    return words.NONE if fitted is None else "yes" if fitted else "no"


def _change(first: Statistic | None, last: Statistic | None) -> str:
    """How many times the first error the last one is."""
    if first is None or last is None or not first.error or last.error is None:
        return words.NONE
    return f"{abs(last.error) / abs(first.error):.2f}{words.TIMES}"


def console_table(cards: Sequence[tuple[str, Scorecard]]) -> Table:
    """The comparison for the console."""
    return console(head(cards), rows(cards), labels=2)


def markdown(cards: Sequence[tuple[str, Scorecard]]) -> str:
    """The comparison as a Markdown table."""
    return "\n".join([*markdown_lines(head(cards), rows(cards), labels=2), ""])
