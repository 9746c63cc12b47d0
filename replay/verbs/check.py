"""``frontier check``: the gate."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from replay.verbs.common import ANY_PATH


@click.command()
@click.argument("scorecard", type=ANY_PATH)
@click.option("--baseline", required=True, type=ANY_PATH, help="The scorecard to be held to.")
@click.option("--update-baseline", "update", is_flag=True, help="Make SCORECARD the baseline.")
@click.option("--points", default=2.0, show_default=True, help="Growth of an error to ignore, %.")
@click.option("--ms", default=0.1, show_default=True, help="Growth of an error to ignore, ms.")
@click.option("-v", "--verbose", is_flag=True, help="Print every reason, not only the first.")
def check(
    scorecard: Path, baseline: Path, update: bool, points: float, ms: float, verbose: bool
) -> None:
    """Fail (exit 1) if SCORECARD is worse than the baseline beyond its noise, 2 if another."""
    from reports.check import Threshold, run_check

    threshold = Threshold(points / 100, ms / 1e3)
    findings, reason = run_check(scorecard, baseline, update=update, threshold=threshold)
    for finding in findings if verbose else ():
        click.echo(f"{finding.kind}: {finding.text}")
    click.echo(reason)
    sys.exit(1 if findings else 0)
