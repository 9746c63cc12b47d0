"""What the verbs share: kinds of paths, and how they talk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

DIRECTORY = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)


def say_notes(notes: Mapping[str, Any]) -> None:
    from traces.inspect import readable_notes

    for name, note in readable_notes(notes).items():
        click.echo(f"{name}: {note}", err=True)


def say(text: str) -> None:
    click.echo(f"{text} ...", err=True)
