"""``frontier capture``: run a server and record what it does."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the measured bundle.")
@click.option("--print-hooks", is_flag=True, help="Print what a server started elsewhere needs.")
@click.option("--deployment", "-D", type=ANY_PATH, help="Start its prefill and decode engines.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def capture(
    out: Path, print_hooks: bool, deployment: Path | None, command: tuple[str, ...]
) -> None:
    """Run COMMAND (vllm serve ..., after a --) and record what it does until it stops."""
    from replay.capture import run_capture
    from replay.command import hook_instructions
    from replay.pair import run_pair

    if print_hooks:
        click.echo(hook_instructions(out))
        return
    if bool(command) == bool(deployment):
        raise click.UsageError(
            "what to run? frontier capture --out B -- vllm serve MODEL ..., or --deployment D"
        )
    bundle = run_pair(deployment, out) if deployment else run_capture(command, out)
    steps = len(bundle.table("steps")) if "steps" in bundle else 0
    click.echo(f"captured {len(bundle.requests)} requests in {steps} steps: {out}", err=True)
