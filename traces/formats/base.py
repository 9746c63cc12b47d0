"""What a trace format is: the columns it is known by, and how it is read as a workload."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from traces.bundle import Manifest
from traces.check import table_faults
from traces.errors import TraceError
from traces.formats.rows import Floats, Ints, Mask, Rows
from traces.schema import REQUESTS
from traces.workload import Workload, make_workload


class Format(Protocol):
    """One foreign file format.

    ``name`` is what ``--from`` and ``--to`` call it; a file is of the format whose
    ``columns`` (CSV header or keys of the first JSON object) it has all of.
    """

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...]: ...

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


def servable(prompt: Ints, output: Ints) -> tuple[Mask, dict[str, int]]:
    """Which requests a server can be asked for, and how many cannot, by reason.

    A request without a prompt token is refused by a server, one without an output token
    failed or was cancelled when it was recorded.
    """
    reasons = {
        "requests without a prompt token skipped": prompt == 0,
        "requests without an output token skipped": (prompt > 0) & (output == 0),
    }
    counts = {reason: int(rows.sum()) for reason, rows in reasons.items()}
    return (prompt > 0) & (output > 0), {r: n for r, n in counts.items() if n}


def demand_of(
    name: str,
    rows: Rows,
    arrival_s: Floats,
    prompt: Ints,
    output: Ints,
    *,
    extra: Mapping[str, np.ndarray | pa.Array] | None = None,
    hash_block_tokens: int | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Workload:
    """The workload of the ``rows`` of a file of format ``name`` that can be served.

    ``arrival_s`` (seconds), ``prompt`` and ``output`` (tokens) have one value a row, as has
    each column of ``extra``. Raises TraceError with the faults ``rows`` has kept, or if no
    row can be served.
    """
    rows.check()
    kept, skipped = servable(prompt, output)
    if not kept.any():
        raise TraceError(f"{rows.path}: an empty workload (no request with a token to generate)")
    columns = {"arrival_s": arrival_s, "prompt_tokens": prompt, "output_tokens": output}
    return make_workload(
        {n: pa.array(v).filter(pa.array(kept)) for n, v in {**columns, **(extra or {})}.items()},
        f"{name} {rows.path.name}",
        hash_block_tokens=hash_block_tokens,
        notes={**skipped, **(notes or {})},
    )


def left_out(workload: Workload, written: Collection[str]) -> dict[str, Any]:
    """The note on columns of a workload that a writer does not write."""
    lost = [n for n in workload.requests.column_names if n not in written]
    return {"columns left out": lost} if lost else {}


def requests_of(path: Path, columns: Mapping[str, Any]) -> pa.Table:
    """The ``requests`` table of a bundle from its columns, sorted by arrival.

    Raises TraceError with all that the schema does not allow.
    """
    names = [c.name for c in REQUESTS.columns if c.name in columns]
    table = pa.table([columns[n] for n in names], schema=REQUESTS.arrow_schema(names))
    table = table.take(pa.array(np.argsort(table.column("arrival_s").to_numpy(), kind="stable")))
    if faults := table_faults(REQUESTS, table, str(path)):
        raise TraceError(faults)
    return table
