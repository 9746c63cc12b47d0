"""``frontier timeline``: bundles for Perfetto."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", required=True, type=ANY_PATH, help="JSON file (.gz: compressed).")
def timeline(bundles: tuple[Path, ...], out: Path) -> None:
    """Write one of BUNDLES, or two side by side on one clock, for ui.perfetto.dev."""
    from reports.timeline import write_timeline

    if len(bundles) > 2:
        raise click.UsageError(f"one or two bundles, not {len(bundles)}")
    events = write_timeline(bundles, out)
    click.echo(f"{events:,} events: {out} (open it at ui.perfetto.dev or chrome://tracing)")
