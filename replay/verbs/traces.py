"""``frontier traces``: look at, translate, make and merge workloads and bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.verbs.common import ANY_PATH, DIRECTORY, say_notes


@click.group()
def traces() -> None:
    """Look at, translate, make and merge workloads and bundles."""


@traces.command("inspect")
@click.argument("path", type=ANY_PATH)
@click.option("--from", "fmt", help="Format of PATH (default: by its content).")
def traces_inspect(path: Path, fmt: str | None) -> None:
    """Say what PATH, a bundle or a trace of any known format, holds."""
    from rich.console import Console

    from traces.inspect import inspect

    console = Console()
    for table in inspect(path, fmt):
        console.print(table)
        console.print()


@traces.command("convert")
@click.argument("path", type=ANY_PATH)
@click.option("--from", "fmt", help="Format of PATH (default: by its content).")
@click.option("--to", required=True, help="bundle, or a format that can be written.")
@click.option("--out", required=True, type=ANY_PATH, help="File (.gz: compressed) or directory.")
def traces_convert(path: Path, fmt: str | None, to: str, out: Path) -> None:
    """Write PATH in another format; says what was skipped or lost."""
    from traces.convert import convert

    command = ["frontier", "traces", "convert", path.name]
    say_notes(convert(path, to, out, fmt=fmt, command=command))


@traces.command("synth")
@click.option("--out", required=True, type=ANY_PATH, help="Directory of the bundle, or file.")
@click.option("--to", default="bundle", show_default=True, help="A format that can be written.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--rate", "rate_per_s", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True, help="Mean requests a second.")  # fmt: skip
@click.option("--arrivals", default="poisson", show_default=True,
              help="poisson, gamma[:CV] or onoff[:MEAN_ON_S,MEAN_OFF_S].")  # fmt: skip
@click.option("--prompt", default="lognormal:512,0.8,16,4096", show_default=True,
              help="Tokens: lognormal:MEDIAN,SIGMA,MIN,MAX, fixed:N or from:PATH.")  # fmt: skip
@click.option("--output", default="lognormal:128,0.8,4,1024", show_default=True,
              help="Tokens to generate, likewise.")  # fmt: skip
@click.option("--prefixes", type=click.IntRange(0), default=0, help="System prompts shared.")
@click.option("--prefix-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--prefix-share", type=click.FloatRange(0, 1), default=1.0, show_default=True,
              help="Share of requests (sessions) that begin with one.")  # fmt: skip
@click.option("--turns", help="Makes sessions: turns of each, as fixed:4.")
@click.option("--think", default="lognormal:5,1,0.5,60", show_default=True,
              help="Seconds from an answer to the next turn.")  # fmt: skip
@click.option("--answer-s", type=click.FloatRange(0), default=1.0, show_default=True,
              help="Seconds an answer is taken to last.")  # fmt: skip
@click.option("--block-tokens", type=click.IntRange(1), default=16, show_default=True,
              help="Tokens of a hashed block.")  # fmt: skip
def traces_synth(out: Path, to: str, seed: int, **recipe: Any) -> None:
    """Make a workload: arrivals, lengths, shared system prompts, sessions."""
    from numpy.random import default_rng

    from traces.convert import write_workload
    from traces.synthesis import Recipe, synthesise

    workload = synthesise(Recipe(**recipe), default_rng(seed))
    command = ["frontier", "traces", "synth"]
    say_notes(write_workload(workload, to, out, seed=seed, command=command))


@traces.command("merge")
@click.argument("bundles", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the merged bundle.")
def traces_merge(bundles: tuple[Path, ...], out: Path) -> None:
    """Put BUNDLES of several engines, or of engines and their client, on one clock."""
    from traces.bundle import read_bundle
    from traces.merge import merge

    command = ["frontier", "traces", "merge", *(b.name for b in bundles)]
    say_notes(merge([read_bundle(b) for b in bundles], out, command).manifest.notes)
