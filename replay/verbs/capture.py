"""``frontier capture``: run a server and record what it does."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the measured bundle.")
@click.option("--print-hooks", is_flag=True, help="Print what a server started elsewhere needs.")
@click.option("--deployment", "-D", type=ANY_PATH, help="Start its prefill and decode engines.")
@click.option("--profile-kernels", is_flag=True, help="Time operators too; slows the server.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def capture(
    out: Path,
    print_hooks: bool,
    deployment: Path | None,
    profile_kernels: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND (vllm serve ..., after a --) and record what it does until it stops."""
    from replay.capture import run_capture
    from replay.command import hook_instructions
    from replay.pair import run_pair

    if print_hooks:
        click.echo(hook_instructions(out, profile_kernels=profile_kernels))
        return
    if bool(command) == bool(deployment):
        raise click.UsageError(
            "what to run? frontier capture --out B -- vllm serve MODEL ..., or --deployment D"
        )
    if deployment is not None:
        if profile_kernels:
            raise click.UsageError("--profile-kernels profiles one engine, not a --deployment")
        bundle = run_pair(deployment, out)
    else:
        bundle = run_capture(command, out, profile_kernels=profile_kernels)
    steps = len(bundle.table("steps")) if "steps" in bundle else 0
    kernels = bundle.manifest.notes.get("kernels", {}).get("passes", 0)
    click.echo(
        f"captured {len(bundle.requests)} requests in {steps} steps"
        + f", {kernels} of them profiled" * profile_kernels
        + f": {out}",
        err=True,
    )
