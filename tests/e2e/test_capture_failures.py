"""What a capture leaves when it, its server or its engine is killed; data-parallel ranks."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from captures import check_join, check_progress, requests_of, zero_s
from vllm_server import (
    LIMIT_S,
    Running,
    captured,
    free_port,
    live,
    running,
    send,
    vllm_serve,
    workload,
)

from replay.prompts import PromptMaker
from traces.bundle import read_bundle
from traces.metrics import request_metrics

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

STEPS_BEFORE_KILL = 150


@pytest.fixture
def model(models: Path) -> Path:
    return models / "dense"


def kill_under_load(capture: Running, lab: Path, victims: dict[int, str]) -> float:
    """Load the server until it is well under way, SIGKILL the victims; returns when (s).

    The client runs to its own end and leaves its bundle in ``client``.
    """
    work = workload(lab / "work", 60, 12.0, seed=3, output=80)
    client = subprocess.Popen(
        live(work, capture.url, lab / "client"), stderr=subprocess.PIPE, text=True
    )
    steps = lab / "out" / "spool" / "steps.0.jsonl"
    deadline_s = time.monotonic() + LIMIT_S
    while steps.read_bytes().count(b"\n") < STEPS_BEFORE_KILL and time.monotonic() < deadline_s:
        time.sleep(0.02)
    killed_s = time.monotonic()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    client.communicate(timeout=LIMIT_S)
    return killed_s


def check_nothing_lost(lab: Path, killed_s: float) -> None:
    """Every token that the client ever received is on record, up to the kill."""
    engine, client = read_bundle(lab / "out"), read_bundle(lab / "client")
    known = requests_of(engine)
    received = 0
    for name, row in requests_of(client).items():
        if got := len(row["token_times_s"]):
            received += got
            assert known[name]["output_tokens"] >= got, name
    assert received > STEPS_BEFORE_KILL
    last_s = zero_s(engine) + engine.table("steps")["end_s"].to_pylist()[-1]
    assert killed_s - 1.0 < last_s < killed_s + 1.0
    assert {"finished", "unfinished"} <= set(engine.requests["status"].to_pylist())
    check_progress(engine)
    request_metrics(engine)  # usable like any other


def test_kill_9_of_everything(model: Path, tmp_path: Path) -> None:
    port = free_port()
    command = captured(tmp_path / "out", vllm_serve(model, port))
    with running(command, tmp_path / "log", port) as capture:
        capture.wait_until_up()
        everything = {capture.process.pid: "frontier", **capture.group()}
        killed_s = kill_under_load(capture, tmp_path, everything)
        assert capture.process.wait(LIMIT_S) == -signal.SIGKILL
    assert not (tmp_path / "out" / "bundle.yaml").exists()
    check_nothing_lost(tmp_path, killed_s)
    check_no_token_in_the_spool(tmp_path)


def check_no_token_in_the_spool(lab: Path) -> None:
    raw = b"".join(f.read_bytes() for f in (lab / "out" / "spool").iterdir())
    work = read_bundle(lab / "work")
    make = PromptMaker(work.requests, work.manifest.hash_block_tokens, 0, 8192)
    for row in range(len(work.requests)):
        ids = make.prompt(row)
        for start in range(len(ids) - 3):
            assert ",".join(map(str, ids[start : start + 4])).encode() not in raw


def test_an_engine_that_dies(model: Path, tmp_path: Path) -> None:
    """vLLM itself then ends in good order, with exit code 0."""
    port = free_port()
    command = captured(tmp_path / "out", vllm_serve(model, port))
    with running(command, tmp_path / "log", port) as capture:
        capture.wait_until_up()
        engine = {p: name for p, name in capture.group().items() if "EngineCor" in name}
        assert len(engine) == 1
        killed_s = kill_under_load(capture, tmp_path, engine)
        assert capture.process.wait(LIMIT_S) == 2
    bundle = read_bundle(tmp_path / "out")
    told = [line for line in capture.said.splitlines() if line.startswith("frontier: ")]
    assert told == [
        f"frontier: the server ended by itself, exit code 0; the {len(bundle.requests)} "
        f"requests captured until then are kept in {bundle.path}"
    ]
    assert not (bundle.path / "spool").exists()
    assert bundle.manifest.notes["server"] == "ended with exit code 0"
    check_nothing_lost(tmp_path, killed_s)


def test_a_server_that_does_not_start(model: Path, tmp_path: Path) -> None:
    port = free_port()
    server = vllm_serve(model, port, "--max-num-seqs", "0")
    with running(captured(tmp_path / "out", server), tmp_path / "log", port) as capture:
        assert capture.process.wait(LIMIT_S) == 2
    assert capture.said.splitlines()[-1] == (
        "frontier: the server ended by itself, exit code 1; nothing was captured"
    )
    assert not (tmp_path / "out").exists()


def test_ctrl_c_before_there_is_an_engine(model: Path, tmp_path: Path) -> None:
    port = free_port()
    command = captured(tmp_path / "out", vllm_serve(model, port))
    with running(command, tmp_path / "log", port) as capture:
        while not (tmp_path / "out" / "spool").is_dir() and capture.process.poll() is None:
            time.sleep(0.05)
        time.sleep(2.0)
        assert capture.stop(signal.SIGINT) == 2
    assert capture.said.splitlines()[-1] == (
        "frontier: stopped before an engine had started; nothing was captured"
    )
    assert not (tmp_path / "out").exists()


def test_data_parallel_ranks_and_the_choice_between_them(model: Path, tmp_path: Path) -> None:
    port = free_port()
    server = vllm_serve(model, port, "--data-parallel-size", 2)
    work = workload(tmp_path / "work", 20, 10.0, seed=4)
    with running(captured(tmp_path / "out", server), tmp_path / "log", port) as capture:
        capture.wait_until_up()
        client = send(work, capture.url, tmp_path / "client")
        assert capture.stop() == 0
    bundle = read_bundle(tmp_path / "out")
    check_join(bundle, client)
    check_progress(bundle)
    served = {name: row["replica"] for name, row in requests_of(bundle).items()}
    assert set(served.values()) == {0, 1}
    choices = bundle.table("routing").to_pylist()
    assert {row["request_id"]: row["replica"] for row in choices} == served
    for row in choices:
        assert len(row["waiting"]) == len(row["running"]) == len(row["in_flight"]) == 2
    assert any(sum(row["in_flight"]) > 0 for row in choices)
    assert bundle.manifest.deployment["clusters"][0]["engine"]["data_parallel_size"] == 2
    # ranks share the key: equal prefixes hash alike on both
    first = [tuple(row["block_hashes"][:1]) for row in bundle.requests.to_pylist()]
    by_rank = [{h for h, r in zip(first, served.values(), strict=True) if r == k} for k in (0, 1)]
    assert by_rank[0] & by_rank[1]
