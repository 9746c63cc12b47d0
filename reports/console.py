"""Tables on the console."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reports import words
from reports.ladder import LABELS, rows
from validation.scorecard import Scorecard

SHOWN = ("mean", "p50", "p90", "p99")
PIPED_COLUMNS = 140


def open_console() -> Console:
    """The standard output; wide enough for every table where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_COLUMNS)


def ladder_table(scorecard: Scorecard) -> Table:
    """What explains the error of the means."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("swapped in", no_wrap=True)
    for label in LABELS:
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("what")
    for row in rows(scorecard):
        table.add_row(*row)
    return table


def error_table(scorecard: Scorecard) -> Table:
    """Errors of every metric: a row a statistic, absolute beside relative, noise beside both."""
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("", no_wrap=True)
    for name in words.COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for errors in scorecard.metrics.values():
        metric = errors.metric
        shown = [(n, s) for n, s in errors.statistics.items() if n in SHOWN]
        for i, (name, s) in enumerate(shown):
            table.add_row(
                Text(metric.label if not i else ""),
                name,
                *words.cells(s, metric),
                end_section=i == len(shown) - 1,
            )
    return table
