"""``frontier live`` against an endpoint that misbehaves on demand."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fake_server import FakeServer

from replay.live import LiveOptions, run_live
from traces.bench_result import write_bench_result
from traces.bundle import Bundle, Manifest, read_bundle, write_bundle
from traces.errors import CaptureError, ConfigError
from traces.formats.vllm_bench import VLLMBench
from traces.metrics import request_metrics

FAULTS = ("http-500", "in-stream", "ends-early")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().running() as running:
        yield running


def workload(path: Path, rows: list[dict[str, Any]], block: int | None = None) -> Path:
    """A workload of ``rows``; 8 prompt and 3 output tokens at 0 s where not said."""
    standard = {"arrival_s": 0.0, "prompt_tokens": 8, "output_tokens": 3}
    table = pa.Table.from_pylist([{"request_id": f"r{i}"} | standard | row
                                  for i, row in enumerate(rows)])  # fmt: skip
    write_bundle(path, Manifest("simulated", hash_block_tokens=block), {"requests": table})
    return path


def live(tmp_path: Path, server: FakeServer, rows: list[dict[str, Any]], block: int | None = None,
         **options: Any) -> Bundle:  # fmt: skip
    run_live(workload(tmp_path / "w", rows, block), tmp_path / "out",
             LiveOptions(server.url, **options))  # fmt: skip
    return read_bundle(tmp_path / "out")


def test_open_loop_waits_for_nobody(tmp_path: Path, server: FakeServer) -> None:
    server.gate = 6  # no answer before all have come
    arrivals_s = [0.01 * i for i in range(6)]
    bundle = live(tmp_path, server, [{"arrival_s": t} for t in arrivals_s])
    assert server.most_in_flight == 6
    assert bundle.requests["arrival_s"].to_pylist() == pytest.approx(arrivals_s)
    for row in bundle.requests.to_pylist():
        times = [row["arrival_s"], row["sent_s"], *row["token_times_s"]]
        assert times == sorted(times)
        assert row["first_token_s"] == row["token_times_s"][0]
        assert row["finished_s"] == row["token_times_s"][-1]
        assert (row["status"], len(row["token_times_s"])) == ("finished", 3)
    assert bundle.manifest.vantage == "client"
    assert bundle.manifest.notes["live"]["loop"] == "open"


def test_closed_loop_keeps_its_number_in_flight(tmp_path: Path, server: FakeServer) -> None:
    server.token_s = 0.005
    server.gate = 3
    bundle = live(tmp_path, server, [{}] * 12, concurrency=3)
    assert server.most_in_flight == 3
    assert [got["id"] for got in server.got[:3]] == ["r0", "r1", "r2"]
    assert set(bundle.requests["status"].to_pylist()) == {"finished"}
    assert bundle.manifest.notes["live"]["loop"] == "closed, 3"


def test_what_is_asked_for(tmp_path: Path, server: FakeServer) -> None:
    rows = [{"priority": 0, "arrival_s": 0.0}, {"priority": 2, "arrival_s": 0.05}]
    live(tmp_path, server, rows, temperature=0.5, vocab_size=50)
    first, second = server.got
    assert (first["id"], second["id"]) == ("r0", "r1")
    assert len(first["prompt"]) == 8
    assert all(16 <= i < 50 for i in first["prompt"])
    for body in (first, second):
        assert {k: v for k, v in body.items() if k not in ("id", "prompt", "priority")} == {
            "model": "tiny", "max_tokens": 3, "ignore_eos": True, "temperature": 0.5,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
    assert "priority" not in first
    assert second["priority"] == 2


def test_warm_up_comes_first_and_shares_nothing(tmp_path: Path, server: FakeServer) -> None:
    rows = [{"block_hashes": [1, 2]}, {"block_hashes": [1, 2], "arrival_s": 0.1}]
    bundle = live(tmp_path, server, rows, block=4, warmup=3)
    names = ["warmup-0", "warmup-1", "warmup-2", "r0", "r1"]
    assert sorted(bundle.requests["request_id"].to_pylist()) == sorted(names)
    assert {got["id"] for got in server.got[:3]} == set(names[:3])
    assert server.got[3]["prompt"] == server.got[4]["prompt"]
    assert len({tuple(got["prompt"][:4]) for got in server.got}) == 4
    assert bundle.manifest.notes["live"]["warm-up requests"] == 3


def test_the_next_turn_contains_the_answer(tmp_path: Path, server: FakeServer) -> None:
    rows = [
        {"output_tokens": 4, "block_hashes": [1, 2, 3]},
        {"prompt_tokens": 13, "block_hashes": [1, 2, 3], "arrival_s": 0.4},
    ]
    live(tmp_path, server, rows, block=4)
    first, second = server.got
    assert second["prompt"][:12] == first["prompt"] + [60, 61, 62, 63]
    assert first["return_token_ids"]
    assert "return_token_ids" not in second


def test_each_failure_is_told_apart(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = live(tmp_path, server, [{"request_id": name} for name in ("good", *FAULTS)])
    found = {row["request_id"]: row for row in bundle.requests.to_pylist()}
    assert {name: row["status"] for name, row in found.items()} == {
        "good": "finished", **dict.fromkeys(FAULTS, "failed")
    }  # fmt: skip
    assert found["ends-early"]["output_tokens"] == 1  # what came is kept
    assert found["http-500"]["output_tokens"] == 0
    assert all(found[name]["finished_s"] is None for name in FAULTS)
    errors = {
        "HTTP 500: out of memory": 1,
        "in the stream: engine died": 1,
        "the stream ended early": 1,
    }
    assert bundle.manifest.notes["live"]["failed"] == errors
    said = capsys.readouterr().err
    for error in errors:
        assert f"frontier: 1 requests failed: {error}\n" in said
    assert (request_metrics(bundle)["e2e"] > 0).sum() == 1  # a failed request is no latency


def test_no_success_is_an_error_and_the_bundle_stays(tmp_path: Path, server: FakeServer) -> None:
    with pytest.raises(CaptureError) as failed:
        live(tmp_path, server, [{"request_id": "http-500"}])
    assert str(failed.value) == f"{server.url}: no request succeeded; see {tmp_path / 'out'}"
    assert read_bundle(tmp_path / "out").requests["status"].to_pylist() == ["failed"]


def test_late_sending_is_counted(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.max_model_len = None
    rows = [{"prompt_tokens": 40_000}] * 40  # all due at once: making them takes long
    bundle = live(tmp_path, server, rows)
    sent_s = bundle.requests["sent_s"].to_numpy()
    late = int((sent_s - bundle.requests["arrival_s"].to_numpy() > 0.010).sum())
    assert late > 0
    assert bundle.manifest.notes["live"]["sent late"] == late
    worst = bundle.manifest.notes["live"]["latest in seconds"]
    assert worst == pytest.approx(sent_s.max(), abs=1e-4)
    assert f"frontier: {late} requests left late (worst {worst * 1e3:.0f} ms)" in (
        capsys.readouterr().err
    )


def test_refusals(tmp_path: Path, server: FakeServer) -> None:
    def refused(rows: list[dict[str, Any]], **options: Any) -> str:
        name = f"w{len(list(tmp_path.iterdir()))}"
        with pytest.raises((CaptureError, ConfigError)) as error:
            run_live(workload(tmp_path / name, rows), tmp_path / f"{name}-out",
                     LiveOptions(**{"url": server.url} | options))  # fmt: skip
        return str(error.value)

    assert refused([{"prompt_tokens": 998}]) == (
        "bundle w0: request 'r0' has 998 + 3 tokens, more than the model's max_model_len of 1000"
    )
    assert refused([{}], model="large") == (
        f"{server.url}/v1/models: no model 'large' (served: tiny, other)"
    )
    assert refused([{}], vocab_size=16) == "--vocab-size must be more than 16"
    assert re.fullmatch(
        r"http://127\.0\.0\.1:9/v1/models: not an OpenAI-compatible endpoint: .+",
        refused([{}], url="http://127.0.0.1:9"),
    )
    assert server.got == []


def test_prefill_then_decode(tmp_path: Path) -> None:
    """One token of prefill, thrown away; decode engines in turn get what it says of its KV."""
    rows = [{"request_id": f"r{i}", "arrival_s": 0.1 * i} for i in range(3)]
    kept = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]]}
    with (
        FakeServer(hands_over=kept).running() as prefill,
        FakeServer().running() as first,
        FakeServer().running() as second,
    ):
        options = LiveOptions(prefill.url, (first.url, second.url + "/v1"))
        bundle = run_live(workload(tmp_path / "w", rows), tmp_path / "out", options)
    assert [(g["max_tokens"], g["stream"]) for g in prefill.got] == [(1, False)] * 3
    assert [[g["id"] for g in s.got] for s in (first, second)] == [["r0", "r2"], ["r1"]]
    assert all(g["kv_transfer_params"] == kept for g in first.got)
    assert all(g["max_tokens"] == 3 for g in first.got)
    assert bundle.requests["output_tokens"].to_pylist() == [3, 3, 3]
    assert set(bundle.requests["status"].to_pylist()) == {"finished"}


def test_prefill_without_a_connector_is_said(tmp_path: Path, server: FakeServer) -> None:
    with (
        FakeServer(hands_over=None).running() as prefill,
        pytest.raises(CaptureError, match="no request succeeded"),
    ):
        run_live(workload(tmp_path / "w", [{}]), tmp_path / "out",
                 LiveOptions(prefill.url, (server.url,)))  # fmt: skip
    failed = read_bundle(tmp_path / "out").manifest.notes["live"]["failed"]
    assert failed == {"ValueError: prefill keeps no KV: it has no KV connector": 1}
    assert server.got == []


def test_ctrl_c_leaves_what_was_seen(tmp_path: Path, server: FakeServer) -> None:
    rows = [{"request_id": "quick"}, {"request_id": "slow"}, {"request_id": "never",
                                                              "arrival_s": 3600.0}]  # fmt: skip
    path = workload(tmp_path / "w", rows)
    command = [sys.executable, "-m", "replay.cli", "live", str(path), "--url", server.url]
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
    ) as client:
        deadline_s = time.monotonic() + 60
        while len(server.got) < 2 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(0.5)
        client.send_signal(signal.SIGINT)
        try:
            _, said = client.communicate(timeout=60)
        finally:
            client.kill()
    assert "frontier: interrupted; requests in flight are unfinished" in said
    assert client.returncode == 0
    requests = read_bundle(tmp_path / "out").requests.to_pylist()
    assert [(r["request_id"], r["status"], r["output_tokens"]) for r in requests] == [
        ("quick", "finished", 3), ("slow", "unfinished", 1),
    ]  # fmt: skip


SESSIONS: list[dict[str, Any]] = [
    {"request_id": "a0", "session_id": "a", "turn": 0, "think_s": 0.0},
    {"request_id": "a1", "session_id": "a", "turn": 1, "think_s": 0.2, "arrival_s": 0.05},
    {"request_id": "b0", "session_id": "b", "turn": 0, "arrival_s": 0.1},
    {"request_id": "a2", "session_id": "a", "turn": 2, "think_s": 0.0, "arrival_s": 0.2},
    {"request_id": "alone", "arrival_s": 0.3},
]


def test_a_turn_waits_for_the_answer_and_thinks(tmp_path: Path, server: FakeServer) -> None:
    server.token_s = 0.1  # an answer takes longer than the workload's pauses
    bundle = live(tmp_path, server, SESSIONS, sessions=True)
    found = {row["request_id"]: row for row in bundle.requests.to_pylist()}
    assert set(found) == {row["request_id"] for row in SESSIONS}
    for before, after, think_s in (("a0", "a1", 0.2), ("a1", "a2", 0.0)):
        pause_s = found[after]["arrival_s"] - found[before]["finished_s"]
        assert think_s <= pause_s < think_s + 0.1
        assert found[after]["sent_s"] >= found[after]["arrival_s"]
    for name, arrival_s in (("b0", 0.1), ("alone", 0.3)):
        assert found[name]["arrival_s"] - found["a0"]["arrival_s"] == pytest.approx(arrival_s)
    assert bundle.manifest.notes["live"]["loop"] == "open, sessions"


def test_sessions_in_a_closed_loop(tmp_path: Path, server: FakeServer) -> None:
    rows = [row | {"think_s": 0.01} for row in SESSIONS]
    bundle = live(tmp_path, server, rows, sessions=True, concurrency=1)
    assert [got["id"] for got in server.got] == ["a0", "a1", "a2", "b0", "alone"]
    assert server.most_in_flight == 1
    assert bundle.manifest.notes["live"]["loop"] == "closed, 1, sessions"


def test_a_session_ends_with_a_turn_that_fails(tmp_path: Path, server: FakeServer) -> None:
    rows = [row | {"request_id": row["request_id"].replace("a1", "http-500")} for row in SESSIONS]
    bundle = live(tmp_path, server, rows, sessions=True)
    assert sorted(bundle.requests["request_id"].to_pylist()) == ["a0", "alone", "b0", "http-500"]
    assert bundle.manifest.notes["live"]["turns not sent, one before them failed"] == 1


def test_a_workload_without_sessions_has_none_to_send(tmp_path: Path, server: FakeServer) -> None:
    with pytest.raises(ConfigError, match=r"^--sessions: the workload has no sessions"):
        live(tmp_path, server, [{}], sessions=True)


def test_a_client_that_cannot_keep_up_says_so(
    tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.max_model_len = None
    live(tmp_path, server, [{"prompt_tokens": 40_000}] * 40)
    said = capsys.readouterr().err
    assert re.search(r"client overloaded: \d+% of the requests left late, the load was", said)
    assert re.search(r"client overloaded: it ran \d+ ms behind \(p99\)", said)


def test_the_result_file_of_vllm_bench(tmp_path: Path, server: FakeServer) -> None:
    """Read back, its requests are the bundle's; its figures are those of the bundle's metrics."""
    server.token_s = 0.01
    rows = [{"arrival_s": 0.02 * i, "output_tokens": 1 + i} for i in range(5)]
    bundle = live(tmp_path, server, [*rows, {"request_id": "http-500", "arrival_s": 0.2}], warmup=2)
    file = tmp_path / "bench.json"
    write_bench_result(bundle, file)
    result = json.loads(file.read_text())
    assert (result["num_prompts"], result["completed"], result["failed"]) == (6, 5, 1)
    metrics = request_metrics(bundle)
    kept = [not i.startswith("warmup-") for i in bundle.requests["request_id"].to_pylist()]
    for name, key in (("ttft", "ttft"), ("tpot", "tpot"), ("e2e", "e2el")):
        values = metrics[name][kept]
        values = values[np.isfinite(values) & np.isfinite(metrics["e2e"][kept])] * 1e3
        assert result[f"mean_{key}_ms"] == pytest.approx(values.mean())
        assert result[f"p99_{key}_ms"] == pytest.approx(np.percentile(values, 99))
    assert result["output_throughput"] == pytest.approx(15 / result["duration"])
    _, tables = VLLMBench().read_bundle(file)
    mine = bundle.requests.filter(pa.array(kept))
    for name in ("sent_s", "first_token_s", "finished_s"):
        here, there = (
            t[name].to_numpy(zero_copy_only=False)[
                [s == "finished" for s in t["status"].to_pylist()]
            ]
            for t in (mine, tables["requests"])
        )
        assert there - there[0] == pytest.approx(here - here[0], abs=1e-9)
