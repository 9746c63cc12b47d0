"""``frontier noise``: how far repeats differ."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say


@click.command()
@click.argument("groups", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", type=ANY_PATH, help="File to keep the numbers in, as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Only the summary.")
def noise(groups: tuple[Path, ...], out: Path | None, quiet: bool) -> None:
    """How far runs of the real system differ: each of GROUPS holds repeats of one workload."""
    from reports.console import open_console
    from reports.noise import floor_table, run_noise, summary

    floors = run_noise(groups, out, progress=say)
    console = open_console()
    for name, floor in floors.items() if not quiet else ():
        console.print(floor_table(name, floor))
        console.print()
    for line in summary(floors):
        click.echo(line)
