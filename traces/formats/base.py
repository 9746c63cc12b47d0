"""What a trace format is: the columns it is known by, and how it is read as a workload."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from traces.bundle import Manifest
from traces.workload import Workload


class Format(Protocol):
    """One foreign file format.

    ``name`` is what ``--from`` and ``--to`` call it; a file is of the format whose
    ``columns`` (CSV header or keys of the first JSON object) it has all of.
    """

    name: str
    columns: tuple[str, ...]

    def read(self, path: Path) -> Workload:
        """Read the demand in the file. Raises TraceError with file, line and what, all at once."""


@runtime_checkable
class WritableFormat(Format, Protocol):
    """A format in which workloads can be written too."""

    def write(self, workload: Workload, path: Path) -> dict[str, Any]:
        """Write a new file; returns notes on what the format cannot hold. Raises TraceError."""


@runtime_checkable
class MeasuredFormat(Format, Protocol):
    """A format that also says what the deployment did."""

    def read_bundle(self, path: Path) -> tuple[Manifest, dict[str, pa.Table]]:
        """The measured bundle in the file: its manifest and tables. Raises TraceError."""
