"""The command line: verbs (``replay/verbs``), and errors as one line."""

from __future__ import annotations

import sys
from typing import Any

import click

from replay.startup import check_packages

check_packages()  # before anything is imported from a package that may be another's

from replay.verbs.capture import capture  # noqa: E402
from replay.verbs.check import check  # noqa: E402
from replay.verbs.compare import compare  # noqa: E402
from replay.verbs.decisions import decisions  # noqa: E402
from replay.verbs.demo import demo  # noqa: E402
from replay.verbs.fit import fit  # noqa: E402
from replay.verbs.import_kernels import import_kernels  # noqa: E402
from replay.verbs.live import live  # noqa: E402
from replay.verbs.noise import noise  # noqa: E402
from replay.verbs.operators import operators  # noqa: E402
from replay.verbs.pipeline import pipeline  # noqa: E402
from replay.verbs.replay import replay  # noqa: E402
from replay.verbs.timeline import timeline  # noqa: E402
from replay.verbs.traces import traces  # noqa: E402
from replay.verbs.validate import validate  # noqa: E402
from replay.verbs.whatif import whatif  # noqa: E402
from traces.errors import CaptureError, ConfigError, TraceError  # noqa: E402

VERBS: tuple[click.Command, ...] = (
    capture, check, compare, decisions, demo, fit, import_kernels, live, noise, operators,
    pipeline, replay, timeline, traces, validate, whatif,
)  # fmt: skip
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


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


for verb in VERBS:
    main.add_command(verb)


if __name__ == "__main__":
    main()
