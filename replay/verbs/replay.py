"""``frontier replay``: a workload through a deployment in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.argument("workload", type=ANY_PATH)
@click.option("--deployment", "-D", type=ANY_PATH, help="Deployment file, or a bundle for its own.")
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the simulated bundle.")
@click.option("--operators", type=DIRECTORY, help="Operator profile (overrides the deployment's).")
@click.option("--rate-scale", type=click.FloatRange(0, min_open=True), default=1.0)
@click.option("--concurrency", type=click.IntRange(1), help="Closed loop with N in flight.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N requests.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--record",
    default="none",
    show_default=True,
    help="Beside the requests: steps,step_requests,spans (stages of some steps).",
)
@click.option(
    "--span-steps",
    type=(click.IntRange(0), click.IntRange(0)),
    default=(0, 9),
    show_default=True,
    metavar="FIRST LAST",
    help="Steps that spans are recorded of.",
)
def replay(workload: Path, deployment: Path | None, out: Path, **options: Any) -> None:
    """Simulate WORKLOAD (a bundle or any known trace format) as a bundle."""
    from replay.startup import load_pyarrow

    load_pyarrow()
    from replay.simulate import run_replay

    summary = run_replay(workload, deployment or workload, out, **options)
    click.echo(summary)
