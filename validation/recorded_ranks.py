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
from simulator.scheduling.request import Request
from simulator.step_time.base import BatchShape
from traces.bundle import Bundle
from traces.metrics import Floats, column
from validation.recorded_steps import Ints, Record, Rows, step_parts


def join_ranks(
    bundle: Bundle, cluster: str, ranks: Sequence[int], records: Mapping[int, Record], depth: int
) -> Record:
    """One record of ``ranks``, whose own are ``records``; steps that only dummies ran are in it."""
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
        *step_parts(together, _first_queued(bundle, rows), depth),
    )  # fmt: skip


def _reduce(ufunc: np.ufunc, values: Floats, where: Ints, size: int) -> Floats:
    found = np.full(size, np.nan)
    ufunc.at(found, where.ravel(), values)
    return found


def _first_queued(bundle: Bundle, rows: Sequence[Rows]) -> Floats:
    """When the first queued of each step's requests was; infinite where only dummies ran."""
    ids = bundle.requests["request_id"].to_pylist()
    at = dict(zip(ids, column(bundle.requests, "queued_s").tolist(), strict=True))
    return np.array([min((at[row[0]] for row in step), default=np.inf) for step in rows])


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
