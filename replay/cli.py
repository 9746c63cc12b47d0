"""The command line: one function per verb, each importing what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from traces.errors import CaptureError, ConfigError, TraceError

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DIRECTORY = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)


class _Group(click.Group):
    """Prints an error the user can fix as one line and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TraceError as error:
            for fault in error.faults:
                click.echo(f"frontier: {fault}", err=True)
        except (ConfigError, CaptureError) as error:
            click.echo(f"frontier: {error}", err=True)
        sys.exit(2)


@click.group(cls=_Group, context_settings=SETTINGS)
@click.version_option(package_name="frontier-replay")
def main() -> None:
    """Capture a real vLLM deployment, replay it in a simulator, measure the difference."""
    from replay.startup import check_packages

    check_packages()


@main.group()
def traces() -> None:
    """Look at, translate, make and merge workloads and bundles."""


if __name__ == "__main__":
    main()
