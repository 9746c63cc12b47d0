"""Writing a workload, or what was measured, in another format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from traces.bundle import Manifest, read_bundle, write_bundle
from traces.errors import ConfigError, nearest
from traces.formats import FORMATS
from traces.formats.base import MeasuredFormat, WritableFormat
from traces.load import BUNDLE, source_format
from traces.workload import Workload, bundle_workload

WRITABLE: dict[str, WritableFormat] = {
    name: f for name, f in FORMATS.items() if isinstance(f, WritableFormat)
}


def convert(
    path: Path, to: str, out: Path, *, fmt: str | None = None, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the file or bundle ``path`` as ``out`` in the format ``to``; returns notes.

    A format that tells what a deployment did becomes a measured bundle, any other the
    bundle of a workload. ``fmt`` forces the format that is read. Raises TraceError,
    ConfigError.
    """
    _check_writable(to)
    source = source_format(path, fmt)
    if to == BUNDLE and isinstance(source, MeasuredFormat):
        manifest, tables = source.read_bundle(path)
        manifest.command = list(command)
        write_bundle(out, manifest, tables)
        return manifest.notes
    workload = source.read(path) if source else bundle_workload(read_bundle(path))
    return workload.notes | write_workload(workload, to, out, command=command)


def write_workload(
    workload: Workload, to: str, out: Path, *, seed: int | None = None, command: Sequence[str] = ()
) -> dict[str, Any]:
    """Write a workload in the format ``to``; returns what it could not hold.

    As a bundle it has a ``requests`` table of what is asked for and nothing else.
    ``seed`` and ``command`` are kept in a bundle only. Raises TraceError, ConfigError.
    """
    _check_writable(to)
    if to != BUNDLE:
        return WRITABLE[to].write(workload, out)
    manifest = Manifest(
        kind="simulated",
        vantage="client",
        command=list(command),
        hash_block_tokens=workload.hash_block_tokens,
        seed=seed,
        notes={"workload": workload.source, **workload.notes},
    )
    write_bundle(out, manifest, {"requests": workload.requests})
    return {}


def _check_writable(to: str) -> None:
    if to == BUNDLE or to in WRITABLE:
        return
    can = f"can be written: {', '.join((BUNDLE, *WRITABLE))}"
    if to in FORMATS:
        raise ConfigError(f"--to {to}: can only be read ({can})")
    raise ConfigError(f"--to: unknown format {to!r}{nearest(to, (BUNDLE, *FORMATS))}; {can}")
