"""A table of text cells, for the console and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.table import Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~@&])")


def escape(text: object) -> str:
    """Text with nothing Markdown or HTML would act on, on one line.

    >>> escape("a|b <i>@x")
    'a\\\\|b \\\\<i\\\\>\\\\@x'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))


def console(head: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1) -> Table:
    """A table for the console; the first ``labels`` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i < labels else "right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown_lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], labels: int = 1
) -> list[str]:
    """The same table in Markdown, a line a row; cells are escaped, titles are not."""
    rule = ["---"] * labels + ["---:"] * (len(head) - labels)
    return [_line(head), _line(rule), *(_line([escape(cell) for cell in row]) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
