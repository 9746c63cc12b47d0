"""``frontier whatif``: one workload through many deployments."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.argument("workload", type=ANY_PATH)
@click.option("--sweep", required=True, type=ANY_PATH, help="What to vary, hold and rank: YAML.")
@click.option(
    "--out", required=True, type=ANY_PATH, help="Directory; a killed sweep goes on in it."
)
@click.option("--operators", type=DIRECTORY, help="Operator profile (overrides the deployments').")
@click.option("--error", type=ANY_PATH, help="Scorecard of the base: how far to trust differences.")
@click.option("--jobs", type=click.IntRange(1), help="Processes (default: one a core).")
@click.option("--backend", default="local", show_default=True, help="local, or ray.")
@click.option("--address", help="--backend ray: the cluster (default: Ray on this machine).")
@click.option("--limit", type=click.IntRange(1), help="Only the first N requests.")
def whatif(
    workload: Path, sweep: Path, out: Path, error: Path | None, jobs: int | None, **options: Any
) -> None:
    """Replay WORKLOAD in many deployments; which is best under SLOs and constraints?"""
    from joblib import cpu_count

    from replay.whatif.run import run_whatif
    from reports.whatif import print_whatif, read_known_error, report_whatif

    known = read_known_error(error) if error is not None else None
    deployment_of = run_whatif(workload, sweep, out, jobs=jobs or cpu_count(), **options)
    found = report_whatif(out, known)
    if found.best is not None:
        (out / "best.yaml").write_text(deployment_of(found.best))
    print_whatif(found, out)
    sys.exit(0 if found.feasible else 2)
