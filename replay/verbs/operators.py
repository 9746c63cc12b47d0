"""``frontier operators``: fit, look at and judge operator models."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say


@click.group()
def operators() -> None:
    """Fit, look at and judge operator models."""


@operators.command("score")
@click.argument("kernels", type=ANY_PATH)
@click.option(
    "--holdout", required=True,
    help='pandas query of the rows to hold out: "m in [16, 256]", "index % 10 == 3".',
)  # fmt: skip
@click.option("--out", required=True, type=ANY_PATH, help="JSON file of the scores.")
@click.option("--workers", type=click.IntRange(1), help="Processes that fit (default: one a core).")
def operators_score(kernels: Path, holdout: str, out: Path, workers: int | None) -> None:
    """Fit on the rest of KERNELS (a table or a profile), score the rows that are held out."""
    from reports.operators import write_scores
    from validation.operators import read_kernels, score

    scores = score(read_kernels(kernels), holdout, say, workers=workers)
    click.echo(write_scores(scores, out))


@operators.command("fit")
@click.argument("profile", type=DIRECTORY)
@click.option("--workers", type=click.IntRange(1), help="Processes that fit (default: one a core).")
def operators_fit(profile: Path, workers: int | None) -> None:
    """Fit operator models to the kernels of PROFILE and keep them there, as data."""
    from validation.operators import fit_profile_operators

    library = fit_profile_operators(profile, workers=workers, progress=say)
    click.echo(f"fitted {len(library.operators)} operators: {profile}", err=True)


@operators.command("show")
@click.argument("profile", type=DIRECTORY)
@click.option("--out", type=ANY_PATH, help="Directory of plots of prediction and measurement.")
def operators_show(profile: Path, out: Path | None) -> None:
    """Print PROFILE's operator families, ranges and errors; fits them where none are kept."""
    from reports.operators import operators_table, write_plots
    from validation.operators import profile_operators

    library = profile_operators(profile, progress=say)
    click.echo(operators_table(library))
    if out:
        click.echo(f"plots: {write_plots(library, out)}", err=True)
