"""The spool of two data-parallel replicas of two ranks each, written by hand.

Times on the server's monotonic clock. Replica 0 runs request a in steps 0 and 1; replica 1
keeps in step with a dummy batch, runs request b beside a's second step, then both idle once:

    start    10.0   11.0   12.0
    rank 0   a 4    a 1    dummy
    rank 1   dummy  b 3    dummy
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from traces.bundle import Bundle, read_bundle
from traces.check import table_faults
from traces.schema import TABLES

DUMMY = -1


def write(spool: Path, name: str, rows: list[dict[str, Any]], torn: str = "") -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (spool / f"{name}.jsonl").write_text(text + torn)


def engine(replica: int) -> dict[str, Any]:
    return {
        "replica": replica, "clock": {"epoch_s": 1.7e9, "monotonic_s": 9.0}, "random_ids": False,
        "versions": {"vllm": "0.32.0"}, "device": {"type": "cpu", "name": "x86"}, "block_size": 4,
        "kv_groups": [{"spec": "FullAttentionSpec"}], "patches": ["frontier_cpu_ep"],
        "config": {"model_config": {"dtype": "torch.float32"}},
    }  # fmt: skip


def added(name: str, time_s: float, prompt: int) -> dict[str, Any]:
    return {
        "event": "added", "request": 0, "id": name, "time_s": time_s, "age_s": 0.0,
        "prompt_tokens": prompt, "max_tokens": 8, "priority": 0, "hashes": [], "features": [],
    }  # fmt: skip


def step(number: int, start_s: float, tokens: int, computed: int) -> dict[str, Any]:
    return {
        "step": number, "start_s": start_s, "end_s": start_s + 0.75, "running": 1, "waiting": 0,
        "free_blocks": 9, "padded_tokens": None, "empty_before": 0, "preempted_before": [],
        "preempted": [], "requests": [0], "tokens": [tokens], "computed": [computed],
        "emitted": [1],
    }  # fmt: skip


def passed(number: int, start_s: float) -> dict[str, Any]:
    return {
        "step": number, "dummy": number == DUMMY, "forward_s": 0.5, "thread_s": 0.5,
        "start_s": start_s,
    }  # fmt: skip


def spans(number: int, start_s: float) -> dict[str, Any]:
    """A collective before the layers and one in layer 3."""
    return {
        "step": number, "stages": ["all_reduce", "all_gather"], "groups": ["dp", "tp"],
        "layers": [None, 3], "bytes": [32, 640], "start_s": [start_s, start_s + 0.25],
        "end_s": [start_s + 0.125, start_s + 0.375],
    }  # fmt: skip


def experts(number: int, *layers: list[int]) -> dict[str, Any]:
    return {"step": number, "layers": list(range(len(layers))), "tokens": list(layers)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    spool = tmp_path / "spool"
    spool.mkdir()
    for replica, name, prompt in ((0, "a", 4), (1, "b", 3)):
        write(spool, f"engine.{replica}", [engine(replica)])
        write(spool, f"model.{replica}", [{"hidden_size": 8}])
        write(spool, f"requests.{replica}", [added(name, 10.0 + replica, prompt)])
    write(spool, "steps.0", [step(0, 10.0, 4, 0), step(1, 11.0, 1, 4)])
    write(spool, "steps.1", [step(0, 11.0, 3, 0)])
    first = ((0, 10.0), (1, 11.0), (DUMMY, 12.0))
    second = ((DUMMY, 10.0), (0, 11.0), (DUMMY, 12.0))
    for replica, passes in ((0, first), (1, second)):
        write(spool, f"forward.{replica}", [passed(*one) for one in passes])
        for rank in (0, 1):
            write(spool, f"spans.{replica}.{rank}", [spans(*one) for one in passes])
    write(spool, "experts.0.0", [experts(0, [1, 2], [3, 0]), experts(1, [1, 0], [0, 1])])
    write(spool, "experts.0.1", [experts(0, [4, 1], [1, 4]), experts(1, [0, 1], [1, 0])])
    write(spool, "experts.1.0", [experts(0, [2, 2], [4, 0])])
    return tmp_path


def rows(bundle: Bundle, table: str, *columns: str) -> list[tuple[Any, ...]]:
    return list(zip(*(bundle.table(table)[c].to_pylist() for c in columns), strict=True))


def test_both_replicas_step_together(path: Path) -> None:
    steps = rows(read_bundle(path), "steps", "replica", "step", "start_s", "dummy")
    assert steps == [
        (0, 0, 0.0, False), (0, 1, 1.0, False), (0, 2, 2.0, True),
        (1, 0, 0.0, True), (1, 1, 1.0, False), (1, 2, 2.0, True),
    ]  # fmt: skip


def test_collectives_of_every_rank_in_real_and_dummy_steps(path: Path) -> None:
    bundle = read_bundle(path)
    wanted = [
        (replica, step, rank, *call)
        for replica in (0, 1)
        for step in (0, 1, 2)
        for rank in (0, 1)
        for call in (
            ("all_reduce", "dp", None, 32, float(step), step + 0.125),
            ("all_gather", "tp", 3, 640, step + 0.25, step + 0.375),
        )
    ]
    columns = ("replica", "step", "rank", "stage", "group", "layer", "bytes", "start_s", "end_s")
    assert rows(bundle, "spans", *columns) == wanted
    assert table_faults(TABLES["spans"], bundle.table("spans"), "spans") == []


def test_ranks_that_split_the_tokens_of_a_step_are_added(path: Path) -> None:
    assert rows(read_bundle(path), "experts", "replica", "step", "layer", "expert_tokens") == [
        (0, 0, 0, [5, 3]), (0, 0, 1, [4, 4]), (0, 1, 0, [1, 1]), (0, 1, 1, [1, 1]),
        (1, 1, 0, [2, 2]), (1, 1, 1, [4, 0]),
    ]  # fmt: skip


def test_collectives_of_a_step_that_was_killed_are_left_out(path: Path) -> None:
    spool = path / "spool"
    write(spool, "steps.1", [], '{"step":0,"start_s":11.0')
    write(spool, "forward.1", [passed(DUMMY, 10.0), passed(0, 11.0)])
    bundle = read_bundle(path)
    assert [row for row in rows(bundle, "spans", "replica", "step") if row[0] == 1] == [(1, 0)] * 4
    assert {row[0] for row in rows(bundle, "experts", "replica")} == {0}


def test_what_was_patched_is_told(path: Path) -> None:
    assert read_bundle(path).manifest.notes["patches"] == ["frontier_cpu_ep"]
