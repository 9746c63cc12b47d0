"""What the recorder writes inside a server, and the bundle made from it: without vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fake_engine import BLOCK_TOKENS, MODEL, FakeEngine

from traces.bundle import bundle_hash, read_bundle
from traces.errors import TraceError
from traces.spool import read_spool, spool_to_bundle

PROMPT = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A capture that was killed: one request finished, one preempted, one aborted, one cut off."""
    engine = FakeEngine(tmp_path / "spool")
    engine.add("cmpl-a-0-0000000a", PROMPT, 2)
    engine.step({"cmpl-a-0-0000000a": 6})
    engine.add("cmpl-b-0-0000000b", [*PROMPT[:8], 1], 3, priority=-1)
    engine.step({"cmpl-a-0-0000000a": 4, "cmpl-b-0-0000000b": 1}, cached=8)
    engine.add("chatcmpl-c-0000000c", [5], 4)
    engine.step({"cmpl-a-0-0000000a": 1}, preempt="cmpl-b-0-0000000b")
    engine.step({"chatcmpl-c-0000000c": 1})
    engine.step({"chatcmpl-c-0000000c": 1})
    engine.abort("chatcmpl-c-0000000c")
    engine.step({})
    engine.step({"cmpl-b-0-0000000b": 10})
    return tmp_path


def rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in table.select(columns).to_pylist()]


def test_requests(killed: Path) -> None:
    requests = read_spool(killed).requests
    assert rows(
        requests, "request_id", "status", "prompt_tokens", "output_tokens", "cached_tokens",
        "preemptions", "priority",
    ) == [
        ("a", "finished", 10, 2, 0, 0, 0),
        ("b", "unfinished", 9, 2, 8, 1, -1),
        ("c", "aborted", 1, 2, 0, 0, 0),
    ]  # fmt: skip
    times = ("arrival_s", "queued_s", "scheduled_s", "first_token_s", "finished_s")
    for row in rows(requests, *times):
        known = [t for t in row if t is not None]
        assert known == sorted(known)
        assert len(known) == (4 if row[-1] is None else 5)
        assert row[1] - row[0] == pytest.approx(0.001, abs=0.0005)


def test_steps(killed: Path) -> None:
    bundle = read_spool(killed)
    assert rows(
        bundle.table("steps"), "step", "prefill_tokens", "decode_tokens", "running", "waiting",
        "preempted", "free_blocks",
    ) == [
        (0, 6, 0, 1, 0, 0, 7),
        (1, 5, 0, 2, 0, 0, 7),
        (2, 0, 1, 1, 2, 1, 7),
        (3, 1, 0, 1, 1, 0, 7),
        (4, 0, 1, 1, 1, 0, 7),
        (5, 10, 0, 1, 0, 0, 7),  # a resumed request recomputes prompt and output in one row
    ]  # fmt: skip
    for start_s, end_s, forward_s in rows(bundle.table("steps"), "start_s", "end_s", "forward_s"):
        assert 0 < forward_s < end_s - start_s
    assert rows(
        bundle.table("step_requests"), "step", "request_id", "scheduled_tokens",
        "computed_tokens", "emitted_tokens",
    ) == [
        (0, "a", 6, 0, 0),
        (1, "a", 4, 6, 1),
        (1, "b", 1, 8, 1),
        (2, "a", 1, 10, 1),
        (3, "c", 1, 0, 1),
        (4, "c", 1, 1, 1),
        (5, "b", 10, 0, 1),
    ]  # fmt: skip


def test_hashes_tell_equal_prefixes_and_nothing_else(killed: Path) -> None:
    a, b, c = (row["block_hashes"] for row in read_spool(killed).requests.to_pylist())
    assert (len(a), len(b), len(c)) == (3, 2, 0)  # a finished: its output counts too
    assert a[:2] == b
    text = "".join(f.read_text() for f in (killed / "spool").iterdir())
    assert "11,12" not in text
    assert "100,101" not in text


def test_a_salt_keeps_equal_prompts_apart(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "spool")
    engine.add("x-00000000", PROMPT, 1)
    engine.add("y-00000000", PROMPT, 1, cache_salt="pepper")
    x, y = (set(row["block_hashes"]) for row in read_spool(tmp_path).requests.to_pylist())
    assert len(x) == len(y) == len(PROMPT) // BLOCK_TOKENS
    assert not x & y


def test_the_manifest_says_what_was_found(killed: Path) -> None:
    manifest = read_spool(killed).manifest
    assert manifest.notes["spool"] == {
        "state": "read from the spool of a capture that was not closed",
        "requests unfinished": 1,
        "schedule() calls that scheduled nothing": 1,
        "forward wall minus thread time, mean and p99 in seconds": [
            pytest.approx(0, abs=0.01), pytest.approx(0, abs=0.01)
        ],
    }  # fmt: skip
    assert manifest.engine_version == "0.32.0"
    assert manifest.deployment["clusters"][0]["engine"]["num_gpu_blocks"] == 8
    assert manifest.notes["vllm_config"]["model_config"]["model"] == "m"


def test_a_torn_last_row_is_left_out_and_named(killed: Path) -> None:
    whole = read_spool(killed)
    file = killed / "spool" / "steps.0.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    torn = read_spool(killed)
    assert torn.manifest.notes["spool"]["torn last rows left out"] == ["steps.0"]
    assert torn.table("steps").equals(whole.table("steps").slice(0, 5))


def test_a_broken_row_before_the_last_is_a_fault(killed: Path) -> None:
    file = killed / "spool" / "steps.0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0] + lines[1][:-30] + "\n" + "".join(lines[2:]))
    with pytest.raises(TraceError, match=r"steps\.0\.jsonl: not a row"):
        read_spool(killed)


def test_a_step_that_was_never_completed_shifts_no_other(killed: Path) -> None:
    whole = read_spool(killed).table("steps").to_pylist()
    file = killed / "spool" / "steps.0.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:]))
    bundle = read_spool(killed)
    del whole[2]
    numbered = [row | {"step": i} for i, row in enumerate(whole)]
    assert bundle.table("steps").to_pylist() == numbered
    assert bundle.manifest.notes["spool"]["steps scheduled but never completed"] == 1


def test_no_engine_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    with pytest.raises(TraceError, match="no engine had started when the capture ended"):
        read_spool(tmp_path)


def test_closing_keeps_everything_but_the_spool(killed: Path) -> None:
    before = bundle_hash(read_bundle(killed))
    closed = spool_to_bundle(killed, {"server": "ended with exit code 1"})
    assert not (killed / "spool").exists()
    assert json.loads((killed / "model.json").read_text()) == MODEL
    assert closed.manifest.notes["server"] == "ended with exit code 1"
    assert "state" not in closed.manifest.notes["spool"]
    assert bundle_hash(read_bundle(killed)) == before


def test_two_replicas_and_an_id_used_twice(tmp_path: Path) -> None:
    for replica in (0, 1):
        engine = FakeEngine(tmp_path / "spool", replica)
        engine.add("cmpl-same-0-0000000a", PROMPT, 1)
        engine.step({"cmpl-same-0-0000000a": 10})
    bundle = read_spool(tmp_path)
    assert rows(bundle.requests, "request_id", "replica") == [("same", 0), ("same~2", 1)]
    assert rows(bundle.table("steps"), "replica", "step") == [(0, 0), (1, 0)]
    assert bundle.manifest.notes["spool"]["request ids seen more than once"] == 1
