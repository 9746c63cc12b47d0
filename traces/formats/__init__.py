"""Foreign trace formats, one file each."""

from __future__ import annotations

from pathlib import Path

from traces.errors import TraceError
from traces.formats.base import Format

FORMATS: dict[str, Format] = {}


def recognise(path: Path) -> Format:
    """The format of a file, by its content. Raises TraceError naming the known formats."""
    raise TraceError(f"{path}: no known trace format (known: {', '.join(FORMATS)})")
