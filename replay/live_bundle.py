"""The bundle of a live run: what the client sent and when what came back arrived."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.bundle import Bundle, Manifest, write_bundle
from traces.schema import REQUESTS
from traces.workload import Workload

LATE_S = 0.010
OVERLOAD_SHARE = 0.05  # of the requests left late
# of the workload, kept as they are: the client's bundle is a workload again
KEPT = ("session_id", "turn", "think_s", "priority", "block_hashes")


@dataclass(slots=True)
class Sent:
    """One request as the client saw it; times are the monotonic clock, in seconds."""

    request_id: str
    row: int | None
    prompt_tokens: int
    output_tokens: int
    due_s: float
    sent_s: float = float("nan")
    token_times_s: list[float] = field(default_factory=list)
    received_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    server_prompt_tokens: int | None = None
    status: str = "unfinished"
    error: str = ""


def live_bundle(
    out: Path, workload: Workload, sent: Sequence[Sent], notes: dict[str, Any], seed: int
) -> Bundle:
    """Write what was ``sent`` as a measured bundle of vantage ``client``.

    Zero is the first request due, warm-up included; ``arrival_s`` is when a request was due.
    """
    order = sorted(sent, key=lambda s: s.due_s)
    zero_s = order[0].due_s if order else time.monotonic()
    manifest = Manifest(
        kind="measured",
        vantage="client",
        clock={
            "name": "CLOCK_MONOTONIC",
            "zero_monotonic_s": zero_s,
            "zero_epoch_s": time.time() - time.monotonic() + zero_s,
        },
        hash_block_tokens=workload.hash_block_tokens,
        seed=seed,
        notes={"workload": Path(workload.source).name, "live": notes},
    )
    _say_overload(notes, len(order))
    return write_bundle(out, manifest, {"requests": _requests(workload, order, zero_s)})


def _say_overload(notes: dict[str, Any], sent: int) -> None:
    """Tell on stderr if the load was not the one asked for, or its times not the server's."""
    if late := notes.get("sent late"):
        worst = notes["latest in seconds"] * 1e3
        print(f"frontier: {late} requests left late (worst {worst:.0f} ms)", file=sys.stderr)
        if late > OVERLOAD_SHARE * sent:
            print(
                f"frontier: client overloaded: {late / sent:.0%} of the requests left late, the "
                "load was lighter than the workload's",
                file=sys.stderr,
            )
    behind_s = notes.get("client behind by, p99 in seconds", 0.0)
    if behind_s > LATE_S:
        print(
            f"frontier: client overloaded: it ran {behind_s * 1e3:.0f} ms behind (p99), by which "
            "times of tokens may be late",
            file=sys.stderr,
        )


def _requests(workload: Workload, sent: Sequence[Sent], zero_s: float) -> pa.Table:
    def time_s(value: float | None) -> float | None:
        return None if value is None or np.isnan(value) else value - zero_s

    columns: dict[str, Any] = {
        "request_id": [s.request_id for s in sent],
        "arrival_s": [time_s(s.due_s) for s in sent],
        "sent_s": [time_s(s.sent_s) for s in sent],
        "prompt_tokens": [s.prompt_tokens for s in sent],
        "output_tokens": [s.received_tokens or len(s.token_times_s) for s in sent],
        "first_token_s": [time_s(next(iter(s.token_times_s), None)) for s in sent],
        "finished_s": [
            time_s(s.token_times_s[-1]) if s.status == "finished" else None for s in sent
        ],
        "status": [s.status for s in sent],
        "token_times_s": [[t - zero_s for t in s.token_times_s] for s in sent],
    }
    rows = pa.array([s.row for s in sent], pa.int64())  # null for warm-up requests
    for name in KEPT:
        if name in workload.requests.column_names:
            columns[name] = workload.requests.column(name).combine_chunks().take(rows)
    names = [c.name for c in REQUESTS.columns if c.name in columns]
    return pa.table({n: columns[n] for n in names}, schema=REQUESTS.arrow_schema(names))
