"""``frontier decisions``: does the simulator choose as reality does?"""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say


@click.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--out", required=True, type=ANY_PATH, help="Directory of decisions.json and .md.")
@click.option("--slo", "slos", multiple=True, metavar="METRIC.STATISTIC=NUMBER",
              help="As ttft.p99=0.5 (seconds); without any, the medians of measured.")  # fmt: skip
def decisions(directory: Path, out: Path, slos: tuple[str, ...]) -> None:
    """Does the simulator choose as reality does? DIRECTORY has <name>/measured and /simulated."""
    from reports.console import open_console
    from reports.decisions import run_decisions, sentence, tables

    found = run_decisions(directory, out, slos, progress=say)
    console = open_console()
    for table in tables(found):
        console.print(table)
        console.print()
    click.echo(sentence(found))
