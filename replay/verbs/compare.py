"""``frontier compare``: scorecards side by side."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH


@click.command()
@click.argument("scorecards", nargs=-1, required=True, type=ANY_PATH)
@click.option("--out", type=ANY_PATH, help="Markdown file of the table.")
def compare(scorecards: tuple[Path, ...], out: Path | None) -> None:
    """The errors of several SCORECARDS of one workload side by side: before and after."""
    from reports.compare import console_table, markdown, read_cards
    from reports.console import open_console

    cards = read_cards(scorecards)
    open_console().print(console_table(cards))
    if out is not None:
        out.write_text(markdown(cards), encoding="utf-8")
