"""The result of ``vllm bench serve --save-result --save-detailed``: one JSON object.

Keys as vllm/benchmarks/serve.py (0.32) writes them: one entry per request in ``input_lens``,
``output_lens`` (0 for a failed one), ``ttfts``, ``itls`` and, in newer versions,
``start_times``, in seconds; ``latencies`` are ttft + sum(itl). ``generated_texts`` and
``errors`` are not kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.bundle import Manifest
from traces.errors import TraceError
from traces.formats.base import demand_of, requests_of
from traces.formats.rows import Rows
from traces.formats.text import read_text
from traces.workload import Workload

_LISTS = ("input_lens", "output_lens", "ttfts", "itls")
_STARTS = "start_times"


class VLLMBench:
    """What the benchmark's client saw; request ids are not in the file: numbers instead."""

    name = "vllm_bench"
    columns = ("duration", "completed", "total_input_tokens", "request_throughput")

    def read(self, path: Path) -> Workload:
        rows, _ = _read(path)
        prompt, output = (rows.ints(n, minimum=0) for n in ("input_lens", "output_lens"))
        arrival_s, notes = np.zeros(len(rows)), {}
        if _STARTS in rows.columns:
            start_s = rows.floats(_STARTS, minimum=0)
            arrival_s = start_s - start_s.min()
        else:
            notes["arrivals"] = f"none in the file ({_STARTS}): all at 0, for --concurrency"
        ids = {"request_id": pa.array(_ids(rows))}
        return demand_of(self.name, rows, arrival_s, prompt, output, extra=ids, notes=notes)

    def read_bundle(self, path: Path) -> tuple[Manifest, dict[str, pa.Table]]:
        rows, result = _read(path)
        if _STARTS not in rows.columns:
            raise TraceError(f"{path}: {_STARTS!r} is missing: when requests ran is not known")
        start_s, ttft_s = (rows.floats(n, minimum=0) for n in (_STARTS, "ttfts"))
        prompt, output = rows.ints("input_lens", minimum=1), rows.ints("output_lens", minimum=0)
        gaps_s = _gaps(rows)
        rows.check()
        zero_s = float(start_s.min())
        sent_s, done = start_s - zero_s, output > 0
        token_s = [
            np.cumsum([sent + ttft, *gaps]).tolist() if ok else []
            for sent, ttft, gaps, ok in zip(sent_s, ttft_s, gaps_s, done, strict=True)
        ]
        columns = {
            "request_id": _ids(rows),
            "arrival_s": sent_s,
            "sent_s": sent_s,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "first_token_s": [t[0] if t else None for t in token_s],
            "finished_s": [t[-1] if t else None for t in token_s],
            "status": ["finished" if ok else "failed" for ok in done],
            "token_times_s": token_s,
        }
        manifest = Manifest(
            kind="measured",
            vantage="client",
            clock={"name": "CLOCK_MONOTONIC", "zero_monotonic_s": zero_s},  # perf_counter()
            notes={"converted from": f"{self.name} {path.name}", **result},
        )
        return manifest, {"requests": requests_of(path, columns)}


def _read(path: Path) -> tuple[Rows, dict[str, Any]]:
    """The requests in the file, and what it says of the run. Raises TraceError."""
    try:
        result = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        several = ": several results in one file" if error.msg == "Extra data" else ""
        raise TraceError(f"{path}:{error.lineno}: not JSON: {error}{several}") from None
    if not isinstance(result, dict):
        raise TraceError(f"{path}: expected an object with the keys of vllm bench serve")
    missing = [n for n in _LISTS if n not in result]
    if missing:
        raise TraceError(f"{path}: {missing[0]!r} is missing: was it saved with --save-detailed?")
    columns = {n: result[n] for n in (*_LISTS, _STARTS) if result.get(n) is not None}
    faults = [f"{path}: {n} is no list" for n, v in columns.items() if not isinstance(v, list)]
    sizes = {n: len(v) for n, v in columns.items() if isinstance(v, list)}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{n} {size}" for n, size in sizes.items())
        faults.append(f"{path}: lists of different lengths: {shown}")
    if faults:
        raise TraceError(faults)
    rows = Rows(path, columns, np.arange(len(columns["input_lens"])), unit="request")
    if not len(rows):
        raise TraceError(f"{path}: an empty workload (no request in it)")
    known = ("backend", "model_id", "request_rate", "burstiness", "max_concurrency")
    return rows, {k: result[k] for k in known if result.get(k) is not None}


def _ids(rows: Rows) -> list[str]:
    return [str(i) for i in range(len(rows))]


def _gaps(rows: Rows) -> list[list[float]]:
    """Gaps between the chunks of each request, in seconds; faults are kept in ``rows``."""
    found: list[list[float]] = []
    faults: dict[int, str] = {}
    for i, gaps in enumerate(rows.columns["itls"]):
        sound = isinstance(gaps, list) and all(
            isinstance(gap, (int, float)) and 0 <= gap < float("inf") for gap in gaps
        )
        if not sound:
            faults[i] = f"itls is {rows.shown('itls', i)}: expected numbers >= 0"
        found.append(gaps if sound else [])
    rows.faults_at(faults)
    return found
