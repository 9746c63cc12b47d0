"""JSON lines of vLLM's own stamps of each request, as LLMServingSim 2.0 records them.

One trap: ``arrival_time`` is on the front end's epoch clock, the other stamps are on the
engine's monotonic clock, and ``queued_ts`` may lie long after the arrival under load. The
clocks are aligned by the smallest queued - arrival, which thereby counts as zero.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.bundle import Manifest
from traces.errors import TraceError
from traces.formats.base import demand_of, requests_of, servable
from traces.formats.read import read_jsonl
from traces.formats.rows import Rows
from traces.formats.text import read_text
from traces.workload import Workload

META = "meta.json"  # beside the file, where the recorder left it
_STAMPS = {
    "queued_s": "queued_ts",
    "scheduled_s": "scheduled_ts",
    "first_token_s": "first_token_ts",
    "finished_s": "last_token_ts",
}


class EngineStamps:
    """``{"request_id", "input_toks", "output_toks", "arrival_time", "queued_ts", ...}``."""

    name = "engine_stamps"
    columns = ("request_id", "input_toks", "output_toks", "arrival_time", *_STAMPS.values())

    def read(self, path: Path) -> Workload:
        rows = read_jsonl(path, self.columns)
        found = _columns(rows)
        ids = {"request_id": pa.array(found["request_id"], pa.string())}
        arrival_s, prompt, output = (
            found[n] for n in ("arrival_s", "prompt_tokens", "output_tokens")
        )
        return demand_of(self.name, rows, arrival_s, prompt, output, extra=ids)

    def read_bundle(self, path: Path) -> tuple[Manifest, dict[str, pa.Table]]:
        rows = read_jsonl(path, self.columns)
        found = _columns(rows)
        kept, notes = servable(found["prompt_tokens"], found["output_tokens"])
        zero_epoch_s, arrival_s = found.pop("zero_epoch_s"), found["arrival_s"]
        zero_monotonic_s = float(np.min(found["queued_s"] - arrival_s))
        for name in _STAMPS:  # rounding may put the aligned one an ulp before its arrival
            found[name] = np.maximum(found[name] - zero_monotonic_s, arrival_s)
        columns = {n: pa.array(v).filter(pa.array(kept)) for n, v in found.items()}
        columns["status"] = pa.array(["finished"] * int(kept.sum()))
        meta = _meta(path.parent / META)
        manifest = Manifest(
            kind="measured",
            engine="vllm",
            engine_version=str(meta.pop("vllm_version", "")),
            clock={
                "name": "CLOCK_MONOTONIC, aligned by the smallest queued - arrival",
                "zero_monotonic_s": zero_monotonic_s,
                "zero_epoch_s": zero_epoch_s,
            },
            notes={"converted from": f"{self.name} {path.name}", **notes, **meta},
        )
        return manifest, {"requests": requests_of(path, columns)}


def _columns(rows: Rows) -> dict[str, Any]:
    """Columns of the bundle as arrays; arrivals from the first one, stamps as they are.

    Also ``zero_epoch_s``, the first arrival. Raises TraceError.
    """
    epoch_s = rows.floats("arrival_time", minimum=0)
    stamps = {name: rows.floats(key, minimum=0) for name, key in _STAMPS.items()}
    for early, late in pairwise(_STAMPS):
        rows.not_before(_STAMPS[late], _STAMPS[early], stamps[late], stamps[early])
    found = {
        "request_id": rows.texts("request_id"),
        "prompt_tokens": rows.ints("input_toks", minimum=0),
        "output_tokens": rows.ints("output_toks", minimum=0),
    }
    rows.check()
    zero_epoch_s = float(epoch_s.min())
    return {**found, "arrival_s": epoch_s - zero_epoch_s, "zero_epoch_s": zero_epoch_s, **stamps}


def _meta(file: Path) -> dict[str, Any]:
    """The engine's version, model and arguments, where the recorder left them."""
    if not file.is_file():
        return {}
    try:
        meta = json.loads(read_text(file))
    except ValueError as error:
        raise TraceError(f"{file}: not JSON: {error}") from None
    known = ("vllm_version", "model", "engine_kwargs", "kv_cache")
    return {k: meta[k] for k in known if k in meta} if isinstance(meta, dict) else {}
