"""``frontier timeline``: bundles as a trace that Perfetto and chrome://tracing open.

The Trace Event Format's JSON object form: complete events (``X``) for requests and their
phases, steps, stages inside steps and transfers, counters (``C``) for the queues, metadata
(``M``) for names. A process a replica, and one a bundle for its requests; what overlaps
without nesting goes to threads beside each other. Times are microseconds with the nanosecond
as third decimal, so that parts end with their whole.
"""

from __future__ import annotations

import gzip
import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle, read_bundle
from traces.errors import ConfigError
from traces.metrics import column

Nanoseconds = npt.NDArray[np.int64]
PHASES = (
    ("queued", "arrival_s", "scheduled_s"),
    ("prefill", "scheduled_s", "first_token_s"),
    ("decode", "first_token_s", "finished_s"),
)
REQUESTS_PID, TRANSFERS_PID, FIRST_REPLICA_PID, PIDS = 1, 2, 10, 1000  # of each bundle
SPAN_TID = 100  # first thread of the stages, after those of the steps
WRITE_EVENTS = 1 << 14  # in one piece
_UNUSED = ("block_hashes", "token_times_s")


@dataclass(frozen=True, slots=True)
class Side:
    """A bundle on the common clock: its time, in seconds, plus ``shift_s``."""

    label: str
    bundle: Bundle
    shift_s: float
    pid: int


def write_timeline(paths: Sequence[Path], out: Path) -> int:
    """Write the trace of one bundle, or of two side by side, to ``out`` (.gz: compressed).

    Returns the number of events. Raises TraceError for what cannot be read, ConfigError if
    ``out`` cannot be written.
    """
    sides = _sides([read_bundle(p, eager=False, skip=_UNUSED) for p in paths])
    count = 0
    with _opened(out) as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        piece: list[str] = []
        for side in sides:
            for event in _events(side):
                piece.append(event)
                if len(piece) == WRITE_EVENTS:
                    file.write(",\n" * (count > 0) + ",\n".join(piece))
                    count += len(piece)
                    piece.clear()
        file.write((",\n" * (count > 0 and bool(piece))) + ",\n".join(piece) + "\n]}\n")
    return count + len(piece)


@contextmanager
def _opened(out: Path) -> Iterator[IO[str]]:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".gz":
            # no name and no time in the header: the same bytes for the same bundles
            with out.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                yield _Text(packed)  # type: ignore[misc]
        else:
            with out.open("w", encoding="utf-8") as file:
                yield file
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None


class _Text:
    """Text into a binary file."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file

    def write(self, text: str) -> None:
        self._file.write(text.encode())


def _sides(bundles: Sequence[Bundle]) -> list[Side]:
    """The bundles on the first one's clock: requests of the same id arrive at the same time."""
    names = [b.path.resolve().name for b in bundles]
    labels = [
        f"{b.manifest.kind} {n}" + (f" ({i + 1})" if names.count(n) > 1 else "")
        for i, (b, n) in enumerate(zip(bundles, names, strict=True))
    ]
    first = bundles[0].requests
    shifts = [0.0, *(_shift(first, other.requests) for other in bundles[1:])]
    # nothing before zero: viewers cut it off
    starts = [
        column(b.requests, "arrival_s").min() + s for b, s in zip(bundles, shifts, strict=True)
    ]
    lift = max(0.0, -min(starts))
    return [
        Side(label, bundle, shift + lift, 1 + i * PIDS)
        for i, (label, bundle, shift) in enumerate(zip(labels, bundles, shifts, strict=True))
    ]


def _shift(first: pa.Table, other: pa.Table) -> float:
    """Seconds to add to ``other``'s times: the median over requests in both, by arrival."""
    names = ["request_id", "arrival_s"]
    both = first.select(names).join(
        other.select(names), "request_id", right_suffix="_other", join_type="inner"
    )
    pairs = (first, other) if not len(both) else (both, both)
    here = column(pairs[0], "arrival_s")
    there = column(pairs[1], "arrival_s_other" if len(both) else "arrival_s")
    return float(np.median(here - there) if len(both) else here.min() - there.min())


def _events(side: Side) -> Iterator[str]:
    yield from _request_events(side)
    bundle = side.bundle
    replicas = _replicas(bundle)
    for pid, (cluster, replica) in enumerate(replicas, side.pid + FIRST_REPLICA_PID):
        yield _name(pid, "process_name", f"{side.label}: {cluster}/{replica}")
        yield _name(pid, "process_sort_index", pid)
        if "steps" in bundle:
            yield from _step_events(side, pid, _of(bundle.table("steps"), cluster, replica))
        if "spans" in bundle:
            yield from _span_events(side, pid, _of(bundle.table("spans"), cluster, replica))
    if "transfers" in bundle:
        yield from _transfer_events(side)


def _replicas(bundle: Bundle) -> list[tuple[str, int]]:
    """Clusters and replicas that have steps or stages, in order."""
    found: set[tuple[str, int]] = set()
    for name in ("steps", "spans"):
        if name in bundle:
            keys = bundle.table(name).select(["cluster", "replica"])
            groups = keys.group_by(["cluster", "replica"]).aggregate([])
            found |= {(r["cluster"], r["replica"]) for r in groups.to_pylist()}
    return sorted(found)


def _of(table: pa.Table, cluster: str, replica: int) -> pa.Table:
    mine = pc.and_(
        pc.equal(table.column("cluster"), cluster), pc.equal(table.column("replica"), replica)
    )
    return table.filter(mine)


def _request_events(side: Side) -> Iterator[str]:
    """A request's life with its phases inside, on as many threads as are in flight at once."""
    table = side.bundle.requests
    pid = side.pid + REQUESTS_PID
    yield _name(pid, "process_name", f"{side.label}: requests")
    yield _name(pid, "process_sort_index", pid)
    start = _ns(side, column(table, "arrival_s"))
    times = {n: column(table, n) for phase in PHASES for n in phase[1:]}
    known = np.array([times["finished_s"], times["first_token_s"], times["scheduled_s"]])
    last = np.fmax.reduce(known, axis=0)  # of one that did not finish: what is last known
    end = np.where(np.isnan(last), start, _ns(side, np.nan_to_num(last)))
    threads = lanes(start, end)
    for lane in range(int(threads.max(initial=-1)) + 1):
        yield _name(pid, "thread_name", f"in flight {lane + 1}", lane + 1)
    details = _args(
        table, ("prompt_tokens", "output_tokens", "cached_tokens", "cluster", "replica",
                "decode_replica", "preemptions", "status", "session_id", "turn"),
    )  # fmt: skip
    names = [json.dumps(i) for i in table.column("request_id").to_pylist()]
    for i, lane in enumerate((threads + 1).tolist()):
        yield _complete(pid, lane, names[i], "request", int(start[i]), int(end[i]), details[i])
    for phase, first, second in PHASES:
        both = np.flatnonzero(~np.isnan(times[first]) & ~np.isnan(times[second]))
        begins, ends = (_ns(side, np.nan_to_num(times[n])) for n in (first, second))
        text = json.dumps(phase)
        for i in both.tolist():
            lane = int(threads[i]) + 1
            yield _complete(pid, lane, text, "phase", int(begins[i]), int(ends[i]))


def _step_events(side: Side, pid: int, steps: pa.Table) -> Iterator[str]:
    """Steps, those in flight together on threads of their own, and the queues as counters."""
    start, end = (_ns(side, column(steps, n)) for n in ("start_s", "end_s"))
    threads = lanes(start, end)
    for lane in range(int(threads.max(initial=-1)) + 1):
        yield _name(pid, "thread_name", "steps" if not lane else f"steps {lane + 1}", lane + 1)
    prefill, decode = (steps.column(f"{n}_tokens").to_pylist() for n in ("prefill", "decode"))
    details = _args(
        steps, ("step", "forward_s", "padded_tokens", "running", "waiting", "free_blocks",
                "preempted", "dummy"),
    )  # fmt: skip
    running, waiting = (steps.column(n).to_pylist() for n in ("running", "waiting"))
    starts, ends, lane_of = start.tolist(), end.tolist(), (threads + 1).tolist()
    for i in range(len(steps)):
        p, d = prefill[i], decode[i]
        name = (
            f'"prefill {p} + decode {d}"' if p and d else f'"prefill {p}"' if p else f'"decode {d}"'
        )
        yield _complete(pid, lane_of[i], name, "step", starts[i], ends[i], details[i])
        yield (
            f'{{"ph":"C","pid":{pid},"tid":0,"name":"requests","ts":{starts[i] / 1000:.3f},'
            f'"args":{{"running":{running[i]},"waiting":{waiting[i]}}}}}'
        )


def _span_events(side: Side, pid: int, spans: pa.Table) -> Iterator[str]:
    """Stages inside steps, by rank and micro-batch; those that overlap beside each other."""
    start, end = (_ns(side, column(spans, n)) for n in ("start_s", "end_s"))
    ranks, batches = (spans.column(n).to_numpy() for n in ("rank", "micro_batch"))
    stages = [json.dumps(s) for s in spans.column("stage").to_pylist()]
    details = _args(spans, ("step", "layer", "micro_batch", "group", "bytes"))
    tid = SPAN_TID
    for rank, batch in sorted(set(zip(ranks.tolist(), batches.tolist(), strict=True))):
        mine = np.flatnonzero((ranks == rank) & (batches == batch))
        threads = lanes(start[mine], end[mine])
        count = int(threads.max()) + 1
        for lane in range(count):
            label = f"rank {rank}, micro-batch {batch}" + (f" ({lane + 1})" if lane else "")
            yield _name(pid, "thread_name", label, tid + lane)
        for i, lane in zip(mine.tolist(), threads.tolist(), strict=True):
            yield _complete(
                pid, tid + lane, stages[i], "stage", int(start[i]), int(end[i]), details[i]
            )
        tid += count


def _transfer_events(side: Side) -> Iterator[str]:
    """KV transfers, by the two replicas they join."""
    table = side.bundle.table("transfers")
    pid = side.pid + TRANSFERS_PID
    yield _name(pid, "process_name", f"{side.label}: KV transfers")
    yield _name(pid, "process_sort_index", pid)
    start, end = (_ns(side, column(table, n)) for n in ("start_s", "end_s"))
    ends = (table.column(n).to_pylist() for n in ("source", "destination"))
    links = np.array([f"{a} to {b}" for a, b in zip(*ends, strict=True)], object)
    names = [json.dumps(i) for i in table.column("request_id").to_pylist()]
    details = _args(table, ("bytes",))
    tid = 1
    for link in sorted(set(links.tolist())):
        mine = np.flatnonzero(links == link)
        threads = lanes(start[mine], end[mine])
        for lane in range(int(threads.max()) + 1):
            yield _name(pid, "thread_name", link + (f" ({lane + 1})" if lane else ""), tid + lane)
        for i, lane in zip(mine.tolist(), threads.tolist(), strict=True):
            yield _complete(
                pid, tid + lane, names[i], "transfer", int(start[i]), int(end[i]), details[i]
            )
        tid += int(threads.max()) + 1


def lanes(start: Nanoseconds, end: Nanoseconds) -> npt.NDArray[np.int64]:
    """A lane for each interval, so that none overlaps another in its lane; the lowest free.

    >>> lanes(np.array([0, 1, 2, 5]), np.array([2, 6, 3, 7])).tolist()
    [0, 1, 0, 0]
    """
    found = np.zeros(len(start), np.int64)
    if (start[1:] >= end[:-1]).all():
        return found
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    begins, ends = start.tolist(), end.tolist()
    for i in np.lexsort((end, start)).tolist():
        while busy and busy[0][0] <= begins[i]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (ends[i], lane))
        found[i] = lane
    return found


def _ns(side: Side, seconds: npt.NDArray[np.float64]) -> Nanoseconds:
    return np.rint((seconds + side.shift_s) * 1e9).astype(np.int64)


def _args(table: pa.Table, names: Iterable[str]) -> list[str]:
    """The ``args`` of each row: what the table has of ``names``, nulls left out."""
    parts: list[list[str]] = []
    for name in names:
        if name in table.column_names:
            values = table.column(name).to_pylist()
            if isinstance(next((v for v in values if v is not None), None), str):
                values = [v if v is None else json.dumps(v) for v in values]
            head = f'"{name}":'
            parts.append(["" if v is None else f"{head}{_plain(v)}" for v in values])
    return [",".join(filter(None, row)) for row in zip(*parts, strict=True)] or [""] * len(table)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _complete(
    pid: int, tid: int, name: str, category: str, start: int, end: int, args: str = ""
) -> str:
    """An event from ``start`` to ``end``, nanoseconds; ``name`` and ``args`` are JSON already."""
    return (
        f'{{"ph":"X","pid":{pid},"tid":{tid},"name":{name},"cat":"{category}",'
        f'"ts":{start / 1000:.3f},"dur":{(end - start) / 1000:.3f},"args":{{{args}}}}}'
    )


def _name(pid: int, what: str, value: str | int, tid: int = 0) -> str:
    key = "sort_index" if what.endswith("sort_index") else "name"
    args = json.dumps({key: value})
    return f'{{"ph":"M","pid":{pid},"tid":{tid},"name":"{what}","args":{args}}}'
