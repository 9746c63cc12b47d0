"""The spool of a killed capture, written by hand, read as a bundle.

Times on the server's monotonic clock. Request a (5 tokens) runs alone, then with b (9, in
two chunks); a leaves, b is still running at the kill, which tears the last row:

    step     0             1             2             3
    1000.5 ..  .625   .625 .. .75   .75 .. .875   .875 .. (torn)
    tokens     a 5       a 1, b 7          b 2          b 1
    emitted    a 1       a 1, b 0          b 1
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from traces.bundle import Bundle, bundle_hash, read_bundle
from traces.errors import TraceError
from traces.load import load_workload
from traces.metrics import inter_token_latencies, request_metrics
from traces.spool import spool_to_bundle

ENGINE = {
    "replica": 0, "clock": {"epoch_s": 1.7e9, "monotonic_s": 900.0}, "random_ids": True,
    "versions": {"vllm": "0.32.0"}, "device": {"type": "cpu", "name": "x86"}, "block_size": 4,
    "kv_groups": [{"spec": "FullAttentionSpec"}],
    "config": {
        "lora_config": {"max_loras": 1}, "scheduler_config": {"max_num_seqs": 8},
        "model_config": {"dtype": "torch.float32"}, "cache_config": {"num_gpu_blocks": 64},
    },
}  # fmt: skip
FORWARD = [
    {"step": 0, "dummy": False, "forward_s": 0.0625, "thread_s": 0.0625, "start_s": 1000.5},
    {"step": 1, "dummy": False, "forward_s": 0.03125, "thread_s": 0.03125, "start_s": 1000.625},
    {"step": 2, "dummy": False, "forward_s": 0.015625, "thread_s": 0.015625, "start_s": 1000.75},
    {"step": 3, "dummy": False, "forward_s": 0.5, "thread_s": 0.5, "start_s": 1000.875},
]
TORN = '{"step":3,"start_s":1000.875,"end_s":1000.9'


def added(number: int, name: str, time_s: float, prompt: int, hashes: list[int]) -> dict[str, Any]:
    return {
        "event": "added", "request": number, "id": f"cmpl-{name}-0-0011aaff", "time_s": time_s,
        "age_s": 0.25, "prompt_tokens": prompt, "max_tokens": 8, "priority": 0, "hashes": hashes,
        "features": ["LoRA adapter"] if number else [],
    }  # fmt: skip


def left(number: int, time_s: float, output: int, hashes: list[int]) -> dict[str, Any]:
    return {
        "event": "left", "request": number, "time_s": time_s, "status": "FINISHED_STOPPED",
        "output_tokens": output, "preemptions": 0, "hashes": hashes,
    }  # fmt: skip


def step(number: int, start_s: float, rows: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    """A step of 1/8 s; ``rows`` are (request, tokens, computed before, emitted)."""
    requests, tokens, computed, emitted = (list(c) for c in zip(*rows, strict=True))
    return {
        "step": number, "start_s": start_s, "end_s": start_s + 0.125, "running": len(rows),
        "waiting": 0, "free_blocks": 60 - number, "padded_tokens": None, "empty_before": 0,
        "preempted_before": [], "preempted": [], "requests": requests, "tokens": tokens,
        "computed": computed, "emitted": emitted,
    }  # fmt: skip


REQUESTS = [
    added(0, "a", 1000.375, 5, [11]),
    added(1, "b", 1000.5, 9, [21, 22]),
    left(0, 1000.75, 2, []),
]
STEPS = [
    step(0, 1000.5, [(0, 5, 0, 1)]),
    step(1, 1000.625, [(0, 1, 5, 1), (1, 7, 0, 0)]),
    step(2, 1000.75, [(1, 2, 7, 1)]),
]


def write(path: Path, name: str, rows: list[dict[str, Any]], torn: str = "") -> None:
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in rows]
    (path / "spool" / f"{name}.jsonl").write_text("".join(lines) + torn)


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    path = tmp_path / "b"
    (path / "spool").mkdir(parents=True)
    write(path, "engine.0", [ENGINE])
    write(path, "model.0", [{"hidden_size": 8}])
    write(path, "requests.0", REQUESTS)
    write(path, "steps.0", STEPS, TORN)
    write(path, "forward.0", FORWARD)
    experts = [{"step": s, "layers": [0, 1], "tokens": [[s, 1], [1, s]]} for s in range(4)]
    write(path, "experts.0.0", experts)
    return path


def column(bundle: Bundle, name: str, table: str = "requests") -> list[Any]:
    values: list[Any] = bundle.table(table)[name].to_pylist()
    return values


def test_requests_are_what_the_complete_steps_imply(killed: Path) -> None:
    bundle = read_bundle(killed)
    assert column(bundle, "request_id") == ["a", "b"]
    # zero is the first arrival: a was queued at 1000.375, stamped 0.25 s before
    assert column(bundle, "arrival_s") == [0.0, 0.125]
    assert column(bundle, "queued_s") == [0.25, 0.375]
    assert column(bundle, "scheduled_s") == [0.375, 0.5]
    assert column(bundle, "first_token_s") == [0.5, 0.75]
    assert column(bundle, "finished_s") == [0.625, None]
    assert column(bundle, "output_tokens") == [2, 1]
    assert column(bundle, "status") == ["finished", "unfinished"]
    assert column(bundle, "cached_tokens") == [0, 0]
    assert column(bundle, "block_hashes") == [[11], [21, 22]]
    metrics = request_metrics(bundle)
    assert metrics["ttft"].tolist() == [0.5, 0.625]
    assert metrics["tpot"].tolist()[0] == 0.125
    assert inter_token_latencies(bundle).tolist() == [0.125]


def test_steps_up_to_the_last_complete_row(killed: Path) -> None:
    bundle = read_bundle(killed)
    assert column(bundle, "step", "steps") == [0, 1, 2]
    assert column(bundle, "start_s", "steps") == [0.375, 0.5, 0.625]
    assert column(bundle, "prefill_tokens", "steps") == [5, 7, 2]
    assert column(bundle, "decode_tokens", "steps") == [0, 1, 0]
    assert column(bundle, "forward_s", "steps") == [0.0625, 0.03125, 0.015625]
    rows = bundle.table("step_requests")
    assert list(zip(rows["step"].to_pylist(), rows["request_id"].to_pylist(),
                    rows["computed_tokens"].to_pylist(), strict=True)) == [
        (0, "a", 0), (1, "a", 5), (1, "b", 0), (2, "b", 7),
    ]  # fmt: skip
    assert column(bundle, "step", "experts") == [0, 0, 1, 1, 2, 2]
    assert column(bundle, "expert_tokens", "experts")[-2:] == [[2, 1], [1, 2]]


def test_the_manifest_says_what_was_found(killed: Path) -> None:
    manifest = read_bundle(killed).manifest
    assert manifest.notes["spool"]["torn last rows left out"] == ["steps.0"]
    assert manifest.notes["spool"]["requests unfinished"] == 1
    assert "not closed" in manifest.notes["spool"]["state"]
    assert (manifest.kind, manifest.vantage, manifest.engine) == ("measured", "engine", "vllm")
    assert (manifest.engine_version, manifest.hash_block_tokens) == ("0.32.0", 4)
    assert manifest.clock["zero_monotonic_s"] == 1000.125
    assert manifest.clock["zero_epoch_s"] == 1.7e9 + 100.125
    assert manifest.ignored == ["LoRA", "LoRA adapter (1 requests)"]


def test_the_workload_of_a_killed_capture(killed: Path) -> None:
    workload = load_workload(killed)
    assert workload.requests["output_tokens"].to_pylist() == [2, 1]
    assert "spool of a killed capture" in workload.notes
    short = "requests that did not finish, asked for the tokens they had produced"
    assert workload.notes[short] == 1


def test_closing_makes_the_same_bundle_and_removes_the_spool(killed: Path) -> None:
    before = bundle_hash(read_bundle(killed))
    closed = spool_to_bundle(killed, {"exit": 0})
    assert bundle_hash(closed) == before
    assert not (killed / "spool").exists()
    assert closed.manifest.notes["exit"] == 0
    assert "state" not in closed.manifest.notes["spool"]
    assert read_bundle(killed).model_config() == {"hidden_size": 8}


@pytest.mark.parametrize("cut", range(1, 40, 4))
def test_torn_anywhere_a_row_is_left_out_whole(killed: Path, cut: int) -> None:
    file = killed / "spool" / "steps.0.jsonl"
    text = file.read_text().removesuffix(TORN)
    file.write_text(text[:-cut])
    bundle = read_bundle(killed)
    assert column(bundle, "step", "steps") == [0, 1]
    assert column(bundle, "output_tokens") == [2, 0]
    assert column(bundle, "first_token_s") == [0.5, None]
    assert column(bundle, "step", "experts") == [0, 0, 1, 1]


def test_a_step_that_was_never_completed_is_a_gap_not_a_shift(killed: Path) -> None:
    write(killed, "steps.0", [STEPS[0], STEPS[2]])
    bundle = read_bundle(killed)
    assert column(bundle, "step", "steps") == [0, 1]
    assert column(bundle, "start_s", "steps") == [0.375, 0.625]
    assert column(bundle, "forward_s", "steps") == [0.0625, 0.015625]
    assert column(bundle, "expert_tokens", "experts")[-2:] == [[2, 1], [1, 2]]


def test_a_broken_row_before_the_last_is_a_fault(killed: Path) -> None:
    file = killed / "spool" / "steps.0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:30] + "\n" + lines[2])
    with pytest.raises(TraceError, match=r"spool/steps.0.jsonl: not a row: "):
        read_bundle(killed)


def test_lists_of_one_step_must_agree(killed: Path) -> None:
    write(killed, "steps.0", [{**STEPS[0], "tokens": [5, 1]}])
    with pytest.raises(TraceError, match=r"steps.0.jsonl: lists of one row differ in length"):
        read_bundle(killed)


def test_a_step_of_an_unknown_request(killed: Path) -> None:
    write(killed, "steps.0", [step(0, 1000.5, [(7, 1, 0, 0)])])
    with pytest.raises(TraceError, match=r"steps.0.jsonl: a step holds an unknown request"):
        read_bundle(killed)


def test_killed_before_any_engine_started(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    with pytest.raises(TraceError, match="spool: no engine had started when the capture ended"):
        read_bundle(tmp_path)


def test_an_id_a_client_used_twice(killed: Path) -> None:
    write(killed, "requests.0", [REQUESTS[0], added(1, "a", 1000.5, 9, []), REQUESTS[2]])
    bundle = read_bundle(killed)
    assert column(bundle, "request_id") == ["a", "a~2"]
    assert bundle.manifest.notes["spool"]["request ids seen more than once"] == 1
