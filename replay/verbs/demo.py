"""``frontier demo``: the main job on the shipped captures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from replay.verbs.common import DIRECTORY, say
from replay.verbs.fit import fit

if TYPE_CHECKING:
    from validation.scorecard import Scorecard


@click.command()
@click.option("--out", default="frontier-demo", show_default=True, type=DIRECTORY)
@click.pass_context
def demo(ctx: click.Context, out: Path) -> None:
    """Fit on shipped captures, replay a higher load, print the errors, write the reports."""
    from reports.compare import console_table
    from reports.console import open_console
    from reports.validate import print_outcome
    from traces.samples import sample_runs

    for model in ("dense", "moe"):
        seen, held = sample_runs(f"{model}-low"), sample_runs(f"{model}-high")
        click.echo(f"\n{model}: fitted on {model}-low, held against {model}-high")
        before = _tried(ctx, seen, held, out / model / "uncalibrated", uncalibrated=True)
        after = _tried(ctx, seen, held, out / model, uncalibrated=False)
        print_outcome(after, [], out / model / "report")
        click.echo("\nwhat fitting changed:")
        cards = [("data sheet alone", before), ("fitted", after)]
        open_console().print(console_table(cards))


def _tried(
    ctx: click.Context, seen: list[Path], held: list[Path], home: Path, *, uncalibrated: bool
) -> Scorecard:
    """Fit, replay, validate, under ``home``."""
    from replay.simulate import run_replay
    from reports.validate import run_validate

    measured, *repeats = held
    profile, simulated, report = (home / d for d in ("profile", "simulated", "report"))
    ctx.invoke(fit, bundles=seen, out=profile, uncalibrated=uncalibrated)
    click.echo(run_replay(measured, measured, simulated, operators=profile, record="steps"))
    return run_validate(measured, simulated, report, repeats=repeats, progress=say)[0]
