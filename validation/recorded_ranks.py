"""The steps of an engine whose ranks step together, from the records of its ranks.

The ranks' hosts meet in every step, so one clock serves them all; a rank without requests runs
a dummy batch::

    start = first rank's start, or when the last rank ended the step before, end = last rank's
    end, forward = the slowest's, host = the rest
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulator.clock import PS_PER_S
from simulator.lockstep import dummy_shape
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.request import Request
from simulator.step_time.base import BatchShape
from traces.bundle import Bundle
from traces.metrics import Floats, column
from validation.recorded_steps import Ints, Record, Rows, step_parts


def join_ranks(
    bundle: Bundle,
    cluster: str,
    ranks: Sequence[int],
    records: Mapping[int, Record],
    config: SchedulerConfig,
) -> Record:
    """One record of ``ranks``, whose own are ``records``; steps that only dummies ran are in it."""
    depth = config.max_concurrent_batches
    steps = bundle.table("steps")
    mine = pc.is_in(steps["replica"], value_set=pa.array(ranks, steps["replica"].type))
    steps = steps.filter(pc.and_(pc.equal(steps["cluster"], cluster), mine))
    number, where = np.unique(steps["step"].to_numpy(), return_inverse=True)
    start, end, forward = (
        _reduce(ufunc, column(steps, name), where, len(number))
        for ufunc, name in ((np.fmin, "start_s"), (np.fmax, "end_s"), (np.fmax, "forward_s"))
    )
    if depth == 1:
        start[1:] = np.maximum(start[1:], end[:-1])
    rows: list[Rows] = [[] for _ in number]
    shapes: list[list[BatchShape]] = [[dummy_shape() for _ in ranks] for _ in number]
    for place, rank in enumerate(ranks):
        record = records[rank]
        at = np.searchsorted(number, record.number)
        for n, i in enumerate(at):
            rows[i] += record.rows[n]
            if record.rows[n]:
                shapes[i][place] = record.shapes[n][0]
    together = pa.table({"start_s": start, "end_s": end, "forward_s": forward})
    return Record(
        number.tolist(), start.tolist(), end.tolist(), rows, [tuple(s) for s in shapes],
        *step_parts(together, _waited_for(bundle, rows, end, config.dp_sync_interval), depth),
    )  # fmt: skip


def _reduce(ufunc: np.ufunc, values: Floats, where: Ints, size: int) -> Floats:
    found = np.full(size, np.nan)
    ufunc.at(found, where.ravel(), values)
    return found


def _waited_for(bundle: Bundle, rows: Sequence[Rows], end_s: Floats, interval: int) -> Floats:
    """When the first request was queued that each wave's first step waited for; else infinite.

    A wave may end after its step 1 and every ``interval``-th, if no rank has requests then.
    """
    ids = bundle.requests["request_id"].to_pylist()
    at = dict(zip(ids, column(bundle.requests, "queued_s").tolist(), strict=True))
    found = np.full(len(rows), np.inf)
    wave = 0
    for n, step in enumerate(rows):
        queued = min((at[row[0]] for row in step), default=np.inf)
        may_wait = n == 0 or wave == 1 or wave % interval == 0
        if may_wait and step and (n == 0 or queued > end_s[n - 1]):
            found[n], wave = queued, 0
        wave += 1
    return found


def _ps(seconds: Floats) -> Ints:
    found: Ints = np.rint(seconds * PS_PER_S).astype(np.int64)
    return found


def give_recorded_stamps(record: Record, requests: Sequence[Request]) -> None:
    """Give ``requests`` the times of their first and last tokens, by the record's ends."""
    known = {request.name: request for request in requests}
    for end, step in zip(_ps(np.array(record.end_s)).tolist(), record.rows, strict=True):
        for name, _, _, emitted in step:
            if emitted <= 0 or (request := known.get(name)) is None:
                continue
            if request.first_token_ps < 0:
                request.first_token_ps = end
            request.output += emitted
            if request.output >= request.max_tokens and request.finished_ps < 0:
                request.finished_ps = end
