"""Trace CSV of BLIS (``blis observe``): a client's view, in microseconds of the epoch clock.

github.com/inference-sim/inference-sim, trace version 3. One trap: the client caps its
requests in flight, so one may be sent long after it was due (``arrival_time_us``, from the
start of the run). What the server was asked for, and when, is ``send_time_us``: it is both
the arrival and the sending here. Lengths of prompts are those the server counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Manifest
from traces.formats.base import demand_of, requests_of, servable
from traces.formats.read import read_csv
from traces.formats.rows import Rows
from traces.workload import Workload

_NOT_KEPT = ("session_id", "prefix_group")
_US_PER_S = 1e6


class Blis:
    """``...,output_tokens,server_input_tokens,arrival_time_us,send_time_us,...,status,...``."""

    name = "blis"
    columns = (
        "request_id", "output_tokens", "server_input_tokens", "arrival_time_us", "send_time_us",
        "first_chunk_time_us", "last_chunk_time_us", "status",
    )  # fmt: skip

    def read(self, path: Path) -> Workload:
        rows = read_csv(path, self.columns, _NOT_KEPT)
        found, notes = _columns(rows)
        arrival_s, prompt, output = (found[n] for n in ("sent_s", "prompt_tokens", "output_tokens"))
        ids = {"request_id": rows.columns["request_id"]}
        return demand_of(self.name, rows, arrival_s, prompt, output, extra=ids, notes=notes)

    def read_bundle(self, path: Path) -> tuple[Manifest, dict[str, pa.Table]]:
        rows = read_csv(path, self.columns, _NOT_KEPT)
        found, notes = _columns(rows)
        kept, skipped = servable(found["prompt_tokens"], found["output_tokens"])
        ok = found.pop("ok")
        for name in ("first_token_s", "finished_s"):
            found[name] = pa.array(found[name], mask=~ok)
        columns = {
            "request_id": rows.columns["request_id"],
            "arrival_s": found["sent_s"],
            "status": pa.array(np.where(ok, "finished", "failed")),
            **found,
        }
        columns = {n: pa.array(v).filter(pa.array(kept)) for n, v in columns.items()}
        zero_epoch_s = rows.ints("send_time_us").min() / _US_PER_S
        manifest = Manifest(
            kind="measured",
            vantage="client",
            clock={"name": "CLOCK_REALTIME", "zero_epoch_s": float(zero_epoch_s)},
            notes={"converted from": f"{self.name} {path.name}", **skipped, **notes},
        )
        return manifest, {"requests": requests_of(path, columns)}


def _columns(rows: Rows) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of the bundle as arrays, times from the first sending, and notes.

    ``ok`` says which requests came back whole; the last times of others mean nothing.
    """
    due_us, sent_us = (rows.ints(n, minimum=0) for n in ("arrival_time_us", "send_time_us"))
    first_us, last_us = (
        rows.ints(n, minimum=0) for n in ("first_chunk_time_us", "last_chunk_time_us")
    )
    prompt, output = (rows.ints(n, minimum=0) for n in ("server_input_tokens", "output_tokens"))
    ok = pc.equal(rows.columns["status"], "ok").to_numpy(zero_copy_only=False)
    rows.fault_rows(ok & (first_us < sent_us), lambda _: "first_chunk_time_us is before sending")
    rows.fault_rows(
        ok & (last_us < first_us), lambda _: "last_chunk_time_us is before first_chunk_time_us"
    )
    rows.check()
    zero_us = sent_us.min()
    held_us = sent_us - due_us
    found = {
        "sent_s": (sent_us - zero_us) / _US_PER_S,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "first_token_s": (first_us - zero_us) / _US_PER_S,
        "finished_s": (last_us - zero_us) / _US_PER_S,
        "ok": ok,
    }
    notes = {"sent up to this many seconds late by the client": _seconds(held_us)}
    return found, {**notes, **_not_kept(rows)}


def _seconds(held_us: np.ndarray) -> float:
    """The latest sending, counted from the one that was least late."""
    return float((held_us.max() - held_us.min()) / _US_PER_S)


def _not_kept(rows: Rows) -> dict[str, int]:
    counts = {
        f"requests with a {name}, not kept": pc.sum(pc.not_equal(rows.columns[name], "")).as_py()
        for name in _NOT_KEPT
        if name in rows.columns
    }
    return {name: count for name, count in counts.items() if count}
