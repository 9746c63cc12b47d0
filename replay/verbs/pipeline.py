"""``frontier pipeline``: the testbed's pipelined steps held to their model."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.argument("runs", type=DIRECTORY)
@click.option("--out", type=ANY_PATH, help="File to keep the numbers in, as JSON.")
@click.option("--simulated", type=DIRECTORY, help="Directory of the predicted runs, as bundles.")
def pipeline(runs: Path, out: Path | None, simulated: Path | None) -> None:
    """Hold the pipelined steps of the testbed's RUNS to the model of them."""
    from rich.console import Console

    from reports.pipelined import run_pipeline

    tables, said = run_pipeline(runs, out, simulated)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for table in tables:
        console.print(table)
        console.print()
    for line in said:
        click.echo(line)
