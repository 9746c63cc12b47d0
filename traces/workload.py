"""A workload: what is asked of a deployment, and when; nothing of what then happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.check import table_faults
from traces.errors import TraceError
from traces.schema import REQUESTS

DEMAND_COLUMNS = (
    "request_id", "arrival_s", "prompt_tokens", "output_tokens", "session_id", "turn", "think_s",
    "priority", "block_hashes",
)  # fmt: skip
WARM_UP = "warmup-"  # what ids of requests begin with that are sent but not judged


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests to send, by arrival.

    ``requests`` holds the columns of the ``requests`` table that describe demand: always
    request_id, arrival_s, prompt_tokens (>= 1) and output_tokens (>= 1), and those of
    ``DEMAND_COLUMNS`` that are known; rows are sorted by ``arrival_s``, ties in the order
    of the source. ``block_hashes`` are chained, one for each leading full block of
    ``hash_block_tokens`` tokens the source knows. ``source`` says what was read; ``notes``
    says in plain words what was skipped or changed, mostly with a count: to be shown.
    """

    requests: pa.Table
    hash_block_tokens: int | None
    source: str
    notes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.requests)


def bundle_workload(bundle: Bundle) -> Workload:
    """What was asked of the deployment of a bundle; what was measured is left out.

    Requests without a single output token cannot be asked for again: skipped and counted
    in ``notes``, as are those that were cut short. Raises TraceError if none is left.
    """
    table = bundle.requests
    notes: dict[str, Any] = {}
    if "spool" in bundle.manifest.notes:
        notes["spool of a killed capture"] = bundle.manifest.notes["spool"]
    empty = pc.less(table.column("output_tokens"), 1)
    if skipped := pc.sum(empty).as_py():
        notes["requests without an output token skipped"] = skipped
        table = table.filter(pc.invert(empty))
    if "status" in table.column_names:
        cut = pc.fill_null(pc.not_equal(table.column("status"), "finished"), False)
        if short := pc.sum(cut).as_py():
            notes["requests that did not finish, asked for the tokens they had produced"] = short
    if len(table) == 0:
        raise TraceError(f"{bundle.path}: an empty workload (no request with an output token)")
    kept = [c for c in DEMAND_COLUMNS if c in table.column_names]
    return Workload(
        table.select(kept), bundle.manifest.hash_block_tokens, f"bundle {bundle.path.name}", notes
    )


def make_workload(
    columns: Mapping[str, Sequence[Any] | np.ndarray | pa.Array],
    source: str,
    *,
    hash_block_tokens: int | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Workload:
    """A workload from columns of equal length, sorted by arrival (ties keep their order).

    ``request_id`` is numbered in that order where it is left out. Raises TraceError if
    there is no row or a value is not what the schema allows.
    """
    names = [n for n in DEMAND_COLUMNS if n in columns]
    table = pa.table([columns[n] for n in names], schema=REQUESTS.arrow_schema(names))
    if len(table) == 0:
        raise TraceError(f"{source}: an empty workload (no request in it)")
    arrival = table.column("arrival_s").to_numpy()
    if np.any(np.diff(arrival) < 0):
        table = table.take(pa.array(np.argsort(arrival, kind="stable")))
    if "request_id" not in names:
        width = len(str(len(table) - 1))
        ids = pa.array([f"{i:0{width}d}" for i in range(len(table))], pa.string())
        table = table.add_column(0, "request_id", ids)
    if faults := table_faults(REQUESTS, table, source):
        raise TraceError(faults)
    return Workload(table, hash_block_tokens, source, dict(notes or {}))


def scale_rate(workload: Workload, factor: float) -> Workload:
    """The workload at ``factor`` times its rate: arrivals and think times divided by it.

    Raises TraceError unless ``factor`` is a positive number.
    """
    if not (np.isfinite(factor) and factor > 0):
        raise TraceError(f"rate scale is {factor}, must be a number above 0")
    table = workload.requests
    for name in ("arrival_s", "think_s"):
        if name in table.column_names:
            index = table.column_names.index(name)
            table = table.set_column(index, name, pc.divide(table.column(name), float(factor)))
    return replace(workload, requests=table)


def first_requests(workload: Workload, n: int) -> Workload:
    """The first ``n`` requests by arrival (all, if there are fewer).

    Raises TraceError if ``n`` is below 1.
    """
    if n < 1:
        raise TraceError(f"limit is {n}, must be at least 1 request")
    return replace(workload, requests=workload.requests.slice(0, n))
