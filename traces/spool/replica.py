"""The rows of one scheduler: what its steps imply about its requests.

First scheduled: start of the first step that holds the request. Cached: what was computed
before that step. First token: end of the first step that emitted one for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import TraceError
from traces.spool.streams import Spool

CLUSTER = "main"

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Replica:
    """Arrays of one scheduler; times are the server's monotonic clock, missing ones NaN.

    ``added`` and ``left`` are the request rows of that event, ``left_of`` the row in
    ``left`` of each request or -1. ``steps`` are the step rows as written (a step that was
    scheduled but never completed has none); ``place`` is the
    index of each in the bundle's steps, where the dummy batches (``dummies``: start and
    duration in seconds, with places of their own) come between them. ``request``, ``step``
    and the three counts describe each request in each step.
    """

    index: int
    added: pa.Table
    left: pa.Table
    left_of: Ints
    steps: pa.Table
    place: Ints
    dummies: Floats
    dummy_place: Ints
    forward_s: Floats
    thread_s: Floats
    request: Ints
    step: Ints
    tokens: Ints
    computed: Ints
    emitted: Ints

    @property
    def ids(self) -> list[str]:
        """vLLM's internal request ids, by request number."""
        ids: list[str] = self.added.column("id").to_pylist()
        return ids

    def rows_of(self, numbers: Ints) -> Ints:
        """Row in ``steps`` of each step number, -1 for steps that were not completed."""
        return _rows_of(_ints(self.steps, "step"), numbers)

    def of_first(self, rows: npt.NDArray[np.bool_], values: npt.NDArray[np.float64]) -> Floats:
        """For each request ``values`` at the first of its ``rows``; NaN where it has none."""
        found = np.full(len(self.added), np.nan)
        requests, first = np.unique(self.request[rows], return_index=True)
        found[requests] = values[rows][first]
        return found


def read_replica(spool: Spool, index: int) -> Replica:
    """Read one scheduler's streams; raises TraceError if they contradict each other."""
    requests, steps = spool.rows(f"requests.{index}"), spool.rows(f"steps.{index}")
    event = requests.column("event")
    added = requests.filter(pc.equal(event, "added"))
    left = requests.filter(pc.equal(event, "left"))
    left_of = np.full(len(added), -1, np.int64)
    left_of[_ints(left, "request")] = np.arange(len(left))
    starts = steps.column("start_s").to_numpy()
    dummies, forward_s, thread_s = _forward(spool.rows(f"forward.{index}"), steps)
    place = np.argsort(np.argsort(np.concatenate([starts, dummies[0]]), kind="stable"))
    counts = {name: _flat(steps, name) for name in ("requests", "tokens", "computed", "emitted")}
    sizes = pc.list_value_length(steps.column("requests")).to_numpy()
    if len({len(values) for values in counts.values()}) > 1:
        raise TraceError(f"{spool.path}/steps.{index}.jsonl: lists of one row differ in length")
    if counts["requests"].max(initial=-1) >= len(added):
        raise TraceError(f"{spool.path}/steps.{index}.jsonl: a step holds an unknown request")
    return Replica(
        index=index,
        added=added,
        left=left,
        left_of=left_of,
        steps=steps,
        place=place[: len(steps)],
        dummies=dummies,
        dummy_place=place[len(steps) :],
        forward_s=forward_s,
        thread_s=thread_s,
        request=counts["requests"],
        step=np.repeat(np.arange(len(steps)), sizes),
        tokens=counts["tokens"],
        computed=counts["computed"],
        emitted=counts["emitted"],
    )


def keyed(table: pa.Table, replica: Replica, step: Ints) -> pa.Table:
    """``table`` with the columns that say which step of which replica each row is of."""
    n = len(table)
    keys = {
        "cluster": pa.array([CLUSTER] * n, pa.string()),
        "replica": np.full(n, replica.index),
        "step": step,
    }
    return pa.table({**keys, **{name: table[name] for name in table.column_names}})


def _forward(rows: pa.Table, steps: pa.Table) -> tuple[Floats, Floats, Floats]:
    dummy = rows.column("dummy").to_numpy(zero_copy_only=False).astype(bool)
    start_s, forward_s, thread_s = (
        rows.column(name).to_numpy() for name in ("start_s", "forward_s", "thread_s")
    )
    at = _rows_of(_ints(steps, "step"), _ints(rows, "step"))
    known = ~dummy & (at >= 0)
    by_step = np.full((2, len(steps)), np.nan)
    by_step[:, at[known]] = forward_s[known], thread_s[known]
    return np.stack([start_s[dummy], forward_s[dummy]]), by_step[0], by_step[1]


def _rows_of(increasing: Ints, wanted: Ints) -> Ints:
    at = np.searchsorted(increasing, wanted)
    found = np.append(increasing, -1)[at] == wanted
    return np.where(found & (at < len(increasing)), at, -1)


def _ints(table: pa.Table, name: str) -> Ints:
    return table.column(name).to_numpy()  # type: ignore[no-any-return]


def _flat(table: pa.Table, name: str) -> Ints:
    values: Ints = pc.list_flatten(table.column(name)).to_numpy()
    return values
