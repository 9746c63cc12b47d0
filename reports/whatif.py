"""``frontier whatif``'s reports: ``report.html``, ``report.md`` and the console."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from reports.scorecard_file import read_scorecard
from reports.tables import escape
from reports.whatif_html import html
from reports.whatif_words import (
    COLUMNS,
    answer,
    effect_rows,
    headline,
    measured_rows,
    point_rows,
    reason_lines,
    shown,
)
from traces.errors import TraceError
from validation.whatif import Found, KnownError, analyse, known_error

TABLE, SUMMARY = "results.parquet", "sweep.json"
EFFECTS = ("axis", "moves the objective", "share of variance", "mean objective by value", "")
MEASURED = ("statistic", "measured", "simulated", "error", "known to within")


def read_known_error(path: Path) -> KnownError:
    """The known error of a base deployment from its scorecard. Raises TraceError."""
    return known_error(read_scorecard(path), path.name)


def report_whatif(folder: Path, known: KnownError | None) -> Found:
    """Rank the points of the sweep in ``folder`` and write its reports there.

    Raises TraceError if it holds no finished sweep.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        rows = pq.read_table(folder / TABLE).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TraceError(f"{folder}: no finished sweep: {' '.join(str(error).split())}") from None
    found = analyse(summary, rows, known)
    (folder / "report.html").write_text(html(found), encoding="utf-8")
    (folder / "report.md").write_text(markdown(found), encoding="utf-8")
    return found


def print_whatif(found: Found, folder: Path) -> None:
    """Print the best points, what the axes do, the answer and where the reports are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    if not found.feasible:
        for line in reason_lines(found):
            print(f"frontier: {line}", file=sys.stderr)
    else:
        console.print(_table(COLUMNS, point_rows(found, shown(found))))
        console.print()
        if found.effects:
            console.print(_table(EFFECTS, effect_rows(found)))
            console.print()
    for line in (answer(found), *headline(found)):
        console.print(line, markup=False, soft_wrap=True)
    console.print(str(folder / "report.html"), markup=False, soft_wrap=True)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i in (0, 1) else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(found: Found) -> str:
    """The outcome as Markdown."""
    lines = ["### What if", "", f"**{escape(answer(found))}**", ""]
    lines += [f"- {escape(line)}" for line in headline(found)]
    if found.feasible:
        lines += ["", *_rows(COLUMNS, point_rows(found, shown(found)))]
        if found.effects:
            lines += ["", "**What each axis does**", "", *_rows(EFFECTS, effect_rows(found))]
    if rows := measured_rows(found):
        lines += ["", "**The base, measured and simulated**", "", *_rows(MEASURED, rows)]
    if found.reasons:
        lines += ["", "**Left out**", "", *(f"- {escape(line)}" for line in reason_lines(found))]
    return "\n".join([*lines, ""])


def _rows(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    found = [f"| {' | '.join(head)} |", f"| --- | --- |{' ---: |' * (len(head) - 2)}"]
    return found + [f"| {' | '.join(escape(c) for c in row)} |" for row in rows]
