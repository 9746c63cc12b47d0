"""Captures of a prefill and a decode engine as one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle
from traces.errors import TraceError
from traces.metrics import inter_token_latencies, request_metrics
from traces.pairs import merge_pair
from traces.schema import TABLES

MODEL = {"model_type": "llama"}
ENGINE = {"block_size": 16, "num_gpu_blocks": 50}
DEPLOYMENT = {
    "clusters": [
        {"name": "p", "role": "prefill", "replicas": 1, "hardware": "cpu"},
        {"name": "d", "role": "decode", "replicas": 1, "hardware": "cpu"},
    ],
    "links": [{"from": "p", "to": "d", "bandwidth_gb_s": 1.0}],
}


def capture(path: Path, zero_s: float, engine_id: str, **tables: dict[str, list[Any]]) -> Bundle:
    """A capture of one engine, its zero at a time of the common monotonic clock."""
    manifest = Manifest(
        "measured",
        engine="vllm",
        engine_version="0.32.0",
        clock={"zero_monotonic_s": zero_s, "zero_epoch_s": 1e9 + zero_s},
        deployment={"model": "model.json", "clusters": [{"name": "main", "engine": ENGINE}]},
        hash_block_tokens=16,
        ignored=["KV connector"],
        notes={"vllm_config": {"kv_transfer_config": {"engine_id": engine_id}}},
    )
    made = {}
    for name, columns in tables.items():
        table = pa.table(columns)
        made[name] = table.cast(TABLES[name].arrow_schema(table.column_names))
    return write_bundle(path, manifest, made, model_config=MODEL)


def requests(ids: list[str], times: list[list[float]], output: int) -> dict[str, list[Any]]:
    """Requests from ids and (arrival, queued, scheduled, first token, finish)."""
    names = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "finished_s")
    return {
        "request_id": ids,
        "prompt_tokens": [20] * len(ids),
        "output_tokens": [output] * len(ids),
        "cluster": ["main"] * len(ids),
        "replica": [0] * len(ids),
        "preemptions": [1] * len(ids),
        "status": ["finished"] * len(ids),
        **dict(zip(names, map(list, zip(*times, strict=True)), strict=True)),
    }


def steps(ends: list[float], ids: list[str]) -> dict[str, dict[str, list[Any]]]:
    """Steps that give one token each, of the request so named."""
    n = len(ends)
    zeros, keys = [0] * n, {"cluster": ["main"] * n, "replica": [0] * n, "step": list(range(n))}
    return {
        "steps": {**keys, "start_s": [e - 0.05 for e in ends], "end_s": ends, "waiting": zeros,
                  "prefill_tokens": [1] * n, "decode_tokens": zeros, "running": [1] * n},
        "step_requests": {**keys, "request_id": ids, "scheduled_tokens": [1] * n,
                          "computed_tokens": zeros, "emitted_tokens": [1] * n},
    }  # fmt: skip


def pair(path: Path, source: str = "engine-p") -> tuple[Bundle, Bundle]:
    """Request a goes all the way; b never reaches decode. Decode's clock begins 10 s later."""
    first = requests(["a", "b"], [[0, 0.1, 0.2, 0.5, 0.5], [1, 1.1, 1.2, 1.5, 1.5]], 1)
    prefill = capture(path / "p0", 100.0, "engine-p", requests=first,
                      **steps([0.5, 1.5], ["a", "b"]))  # fmt: skip
    shift = -10.0
    times = [[t + shift for t in (10.6, 10.7, 10.9, 11.0, 11.2)]]
    decode = capture(
        path / "d0", 110.0, "engine-d", requests=requests(["a"], times, 3),
        **steps([1.0, 1.1, 1.2], ["a"] * 3),
        transfers={"source": [source], "destination": ["main/0"], "request_id": ["a"],
                   "bytes": [4096], "start_s": [0.75], "end_s": [0.8]},
    )  # fmt: skip
    return prefill, decode


def test_one_bundle_on_one_clock(tmp_path: Path) -> None:
    prefill, decode = pair(tmp_path)
    merge_pair([prefill], [decode], DEPLOYMENT, tmp_path / "out")
    bundle = read_bundle(tmp_path / "out")
    a, b = bundle.requests.to_pylist()
    assert (a["arrival_s"], a["prefill_finished_s"]) == (0.0, 0.5)
    times = {name: round(a[f"{name}_s"], 9) for name in (
        "decode_queued", "transfer_start", "transfer_end", "decode_scheduled", "first_token",
        "finished",
    )}  # fmt: skip
    assert times == {
        "decode_queued": 10.7, "transfer_start": 10.75, "transfer_end": 10.8,
        "decode_scheduled": 10.9, "first_token": 11.0, "finished": 11.2,
    }  # fmt: skip
    assert (a["cluster"], a["replica"], a["decode_replica"]) == ("p", 0, 0)
    assert (a["output_tokens"], a["preemptions"], a["status"]) == (3, 2, "finished")
    assert (b["status"], b["output_tokens"], b["decode_replica"]) == ("unfinished", 0, None)
    assert bundle.table("steps")["cluster"].to_pylist() == ["p", "p", "d", "d", "d"]
    transfer = bundle.table("transfers").to_pylist()[0]
    assert (transfer["source"], transfer["destination"]) == ("p/0", "d/0")
    assert bundle.manifest.ignored == []
    assert bundle.manifest.deployment["clusters"][1]["engine"] == ENGINE
    assert bundle.manifest.notes["of these met by decode"] == 1
    # the token that prefill made is nobody's
    assert inter_token_latencies(bundle) == pytest.approx([0.1, 0.1])
    values = request_metrics(bundle)
    parts = ("queue", "prefill", "transfer_wait", "transfer", "decode_queue")
    assert sum(values[name][0] for name in parts) == pytest.approx(10.9)
    assert values["ttft"][0] == pytest.approx(11.0)


def test_without_transfers_there_is_no_pair(tmp_path: Path) -> None:
    prefill, _ = pair(tmp_path)
    other = pair(tmp_path / "other")[0]
    with pytest.raises(TraceError, match="decode engines pulled nothing"):
        merge_pair([prefill], [other], DEPLOYMENT, tmp_path / "out")
