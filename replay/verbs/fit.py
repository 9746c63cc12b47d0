"""``frontier fit``: a profile from captured bundles."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say


@click.command()
@click.argument("bundles", nargs=-1, required=True, type=ANY_PATH)
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the profile.")
@click.option("--cluster", help="Only this cluster's engines, where there are several.")
@click.option("--operators", type=DIRECTORY, help="Profile of kernels: fit what they do not tell.")
@click.option("--deployment", "-D", type=ANY_PATH, help="With --operators, if BUNDLES have none.")
@click.option("--first", type=click.IntRange(1),
              help="With --operators: on the first N requests of each bundle only.")  # fmt: skip
@click.option("--constant", "constants", multiple=True,
              type=click.Choice(["step_s", "prompt_step_s", "slowdown", "frontend_s"]),
              default=["slowdown", "frontend_s"],
              help="With --operators: this constant, the others stay 0.")  # fmt: skip
@click.option(
    "--uncalibrated",
    is_flag=True,
    help="From the data sheet; BUNDLES or a deployment file name device and engine.",
)
def fit(
    bundles: tuple[Path, ...],
    out: Path,
    cluster: str | None,
    operators: Path | None,
    deployment: Path | None,
    first: int | None,
    constants: tuple[str, ...],
    uncalibrated: bool,
) -> None:
    """Fit a profile from captured BUNDLES of one engine: its steps, or what kernels leave open."""
    if operators is not None:
        from replay.fit_overhead import fit_overhead, overhead_table

        found = fit_overhead(bundles, operators, deployment, out, say,
                             first=first, constants=constants)  # fmt: skip
        click.echo(overhead_table(found))
        return
    from replay.plan import sheet_profile_of
    from simulator.moe.fit import describe, fit_bundles, write_fitted
    from simulator.step_time.fit import fit_profile, profile_table
    from simulator.step_time.fitted import save_profile
    from traces.bundle import read_bundle

    if uncalibrated:
        profile, loads = sheet_profile_of(bundles[0]), None
    else:
        captures = [read_bundle(b) for b in bundles]
        profile = fit_profile(captures, cluster=cluster, progress=say)
        loads = fit_bundles(captures)
    save_profile(profile, out)
    click.echo(profile_table(profile))
    if loads is not None:
        write_fitted(loads, out)
        click.echo(describe(loads))
