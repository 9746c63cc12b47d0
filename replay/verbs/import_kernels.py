"""``frontier import-kernels``: measured operator tables of others."""

from __future__ import annotations

from pathlib import Path

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say


@click.command("import-kernels")
@click.argument("source")
@click.argument("path", type=ANY_PATH)
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the profile.")
@click.option("--add", is_flag=True, help="Add to the kernels the profile holds already.")
@click.option("--gpu", help="Only this device, as its hardware sheet is named.")
@click.option("--engine", help="aiconfigurator: vllm (default), sglang or trtllm.")
@click.option("--version", help="aiconfigurator: an engine version, latest (default) or all.")
def import_kernels(source: str, path: Path, out: Path, add: bool, **selection: str | None) -> None:
    """Read measured operator tables (SOURCE at PATH) into a profile; fits nothing.

    SOURCE is aiconfigurator, bundle, frontier, network or rtx-vllm0.19; aiconfigurator's PATH
    is a wheel of aiconfigurator-core, a directory of it, or "installed".
    """
    from replay.import_kernels import import_kernels as run
    from traces.kernels.base import Selection

    click.echo(run(source, path, out, Selection(**selection), add=add, progress=say))
