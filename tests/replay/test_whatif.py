"""``frontier whatif``: a row is what a replay gives, whoever computes it and however often."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from replay.plan import make_plan
from replay.simulate import replay
from replay.whatif.backends.local import Local
from replay.whatif.base import Bases, Files
from replay.whatif.capacity import find_capacity
from replay.whatif.keys import put, settle_memory
from replay.whatif.points import points_of
from replay.whatif.spec import Sweep, load_sweep
from traces.bundle import Bundle, Manifest, write_bundle
from traces.errors import ConfigError
from traces.load import load_workload
from traces.metrics import request_metrics
from traces.samples import sample_runs
from traces.workload import scale_rate

Frontier = Callable[..., Result]
MEASURED = sample_runs("dense-high")[0]
CORE = ["request_id", "arrival_s", "prompt_tokens", "output_tokens"]
SWEEP = {
    "axes": {
        "engine.max_num_seqs": [4, 64],
        "engine.max_num_batched_tokens": [512, 3],
        "replicas": [1, 2],
        "rate_scale": [1.0, 2.0],
    },
    "slos": {"ttft.p90": 0.5, "tpot.mean": 0.05},
    "objective": "goodput_per_gpu",
}


def sweep_file(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def whatif(frontier: Frontier, tmp_path: Path, dense_profile: Path) -> Callable[..., Result]:
    """Run a sweep of the dense sample's deployment in this process."""

    def run(content: dict[str, Any], *more: object, workload: Path = MEASURED) -> Result:
        file = sweep_file(tmp_path / "s.yaml", content)
        return frontier(
            "whatif", workload, "--sweep", file, "--operators", dense_profile, "--jobs", 1,
            "--out", tmp_path / "out", *more,
        )  # fmt: skip

    return run


def test_a_row_is_what_a_replay_gives(
    whatif: Callable[..., Result], tmp_path: Path, dense_profile: Path
) -> None:
    result = whatif(SWEEP | {"warmup": 0.25})
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert len(rows) == 16
    assert [r["status"] for r in rows].count("infeasible") == 8
    for row in rows[4:8]:
        assert row["reason"].endswith("max_num_batched_tokens: 3 is smaller than max_num_seqs 4")
    row = rows[3]  # 4 seats, 2 replicas, twice the rate
    assert [row[k] for k in SWEEP["axes"]] == [4, 512, 2, 2.0]  # type: ignore[index]
    raw = yaml.safe_load((MEASURED / "bundle.yaml").read_text())["deployment"]
    raw["model"] = str(MEASURED / "model.json")
    raw["clusters"][0]["engine"]["max_num_seqs"] = 4
    raw["clusters"][0]["replicas"] = 2
    file = sweep_file(tmp_path / "d.yaml", raw)
    workload = scale_rate(load_workload(MEASURED), 2.0)
    manifest, tables = replay(workload, make_plan(file, operators=dense_profile), record=())
    requests = tables["requests"]
    values = request_metrics(Bundle(tmp_path, manifest, tables))
    ids = requests["request_id"].to_pylist()
    judged = [i for i, name in enumerate(ids) if not name.startswith("warmup-")][60:]
    for name in ("ttft", "tpot", "e2e"):
        v = values[name][judged]
        assert row[f"{name}_p99_s"] == np.percentile(v[~np.isnan(v)], 99)
    arrival, end, tokens = (
        requests[n].to_numpy()[judged] for n in ("arrival_s", "finished_s", "output_tokens")
    )
    seconds = end.max() - arrival.min()
    assert row["tokens_per_s_per_gpu"] == pytest.approx(tokens.sum() / seconds / 2, rel=1e-12)
    good = (values["ttft"][judged] <= 0.5) & ~(values["tpot"][judged] > 0.05)
    assert row["objective"] == pytest.approx(good.sum() / seconds / 2, rel=1e-12)
    assert row["gpus"] == 2


def test_killed_and_resumed_the_table_is_the_same(
    frontier: Frontier, tmp_path: Path, dense_profile: Path
) -> None:
    content = SWEEP | {"capacity": {"tolerance": 0.001}}
    file = sweep_file(tmp_path / "s.yaml", content)

    def command(out: str) -> list[str]:
        return [
            "whatif", str(MEASURED), "--sweep", str(file),
            "--operators", str(dense_profile), "--jobs", "1", "--out", str(tmp_path / out),
        ]  # fmt: skip

    assert frontier(*command("whole")).exit_code == 0
    journal = tmp_path / "killed" / "journal.jsonl"
    python = [sys.executable, "-m", "replay.cli"]
    with subprocess.Popen([*python, *command("killed")], stdout=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if journal.is_file() and journal.read_bytes().count(b"\n") >= 3:
                break
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
    before = journal.read_bytes()
    assert 3 <= before.count(b"\n") < 17
    assert not (tmp_path / "killed" / "results.parquet").exists()
    with journal.open("ab") as file_:
        file_.write(b'["half a li')  # as a kill in the middle of a write leaves it
    assert frontier(*command("killed")).exit_code == 0
    assert journal.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    for name in ("results.parquet", "sweep.json", "report.md"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_dying_process_is_retried_and_a_poisoned_point_given_up(tmp_path: Path) -> None:
    def make() -> Callable[[tuple[str, str]], str]:  # in here it goes to processes by value
        def deadly(task: tuple[str, str]) -> str:
            what, folder = task
            if what == "poison" or (what == "once" and not (Path(folder) / "seen").exists()):
                (Path(folder) / "seen").touch()
                os._exit(13)
            return what.upper()

        return deadly

    names = ["a", "poison", "once", "b"]
    backend = Local(2)
    with backend.open(make):
        found = list(backend.run([(name, str(tmp_path)) for name in names]))
    assert sorted(o.index for o in found) == list(range(4))
    for outcome in found:
        if names[outcome.index] == "poison":
            assert outcome.answer is None
            assert "its process died 2 times" in (outcome.died or "")
        else:
            assert (outcome.answer, outcome.died) == (names[outcome.index].upper(), None)


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_every_backend_gives_the_same_table(
    whatif: Callable[..., Result], tmp_path: Path, dense_profile: Path, backend: str
) -> None:
    if backend == "ray":
        pytest.importorskip("ray")
    assert whatif(SWEEP).exit_code == 0
    command = [
        sys.executable, "-m", "replay.cli", "whatif", MEASURED, "--sweep", tmp_path / "s.yaml",
        "--operators", dense_profile, "--jobs", "2", "--out", tmp_path / "o", "--backend", backend,
    ]  # fmt: skip
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tables = [(tmp_path / out / "results.parquet").read_bytes() for out in ("out", "o")]
    assert tables[0] == tables[1]


@given(st.floats(0.02, 50), st.floats(1e-3, 0.5))
def test_capacity_is_bracketed(threshold: float, tolerance: float) -> None:
    found = find_capacity(lambda f: f <= threshold, 1 / 64, 64, tolerance)
    assert found.holds is not None
    assert found.fails is not None
    assert found.holds <= threshold < found.fails <= found.holds * (1 + tolerance)


def test_capacity_beyond_its_limits_is_open() -> None:
    assert find_capacity(lambda f: True, 0.5, 3, 0.1).fails is None
    assert find_capacity(lambda f: False, 0.5, 3, 0.1).holds is None
    assert find_capacity(lambda f: True, 2, 3, 0.1).holds == 3


def test_capacity_of_a_deployment(whatif: Callable[..., Result], tmp_path: Path) -> None:
    """The ends of the interval, replayed: one meets the SLOs, the other does not."""
    content = {
        "axes": {"replicas": [1]}, "slos": {"ttft.p90": 0.5, "tpot.p90": 0.05},
        "objective": "capacity", "capacity": {"tolerance": 0.05, "warmup": 0.2},
    }  # fmt: skip
    assert whatif(content).exit_code == 0
    row = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()[0]
    assert row["capacity"] < row["capacity_below"] <= row["capacity"] * 1.05
    assert row["objective"] == row["capacity"]
    low = row["capacity_rate_scale"]
    ends = [low, low * row["capacity_below"] / row["capacity"]]
    content |= {"axes": {"rate_scale": ends}, "warmup": 0.2}
    assert whatif(content).exit_code == 0
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [r["meets_slos"] for r in rows] == [True, False]


def test_a_search_is_the_same_again(whatif: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    content = SWEEP | {
        "axes": {"engine.max_num_seqs": {"from": 1, "to": 200, "log": True}, "replicas": [1, 2]},
        "search": {"points": 12, "seed": 1, "batch": 4},
    }
    table, journal = tmp_path / "out" / "results.parquet", tmp_path / "out" / "journal.jsonl"
    assert whatif(content).exit_code == 0
    first = table.read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:5]))
    assert whatif(content).exit_code == 0
    assert table.read_bytes() == first
    assert sorted(journal.read_bytes().splitlines(keepends=True)) == sorted(lines)


def refusal(result: Result) -> str:
    assert result.exit_code == 2, result.output
    lines = [x for x in result.stderr.splitlines() if x.startswith("frontier: ")]
    assert len(lines) == 1
    return lines[0]


def test_what_cannot_be_swept(whatif: Callable[..., Result], tmp_path: Path) -> None:
    def with_axis(name: str, values: object) -> str:
        return refusal(whatif(SWEEP | {"axes": {name: values}}))

    assert "axes: unknown key 'engine.max_num_batch_tokens'; did you mean " in with_axis(
        "engine.max_num_batch_tokens", [1]
    )
    assert "did you mean 'engine.max_num_batched_tokens'?" in with_axis(
        "engine.max_num_batch_tokens", [1]
    )
    assert "unknown key 'replica'; did you mean 'replicas'?" in with_axis("replica", [1])
    assert "unknown clusters[man]; did you mean 'main'?" in with_axis("clusters[man].replicas", [1])
    assert "unknown links[0]" in with_axis("links[0].bandwidth_gb_s", [1.0])
    assert "a range needs a sample or a search" in with_axis("replicas", {"from": 1, "to": 3})
    assert "rate_scale: must be a number above 0, got 0" in with_axis("rate_scale", [0])
    assert refusal(whatif(SWEEP | {"slos": {"ttft.p99.9": 0.5}})).endswith(
        "ttft.p99.9: needs 1000 requests, the workload has 240 beside its warm-up: too short a "
        "trace for it"
    )
    assert "slos: unknown metric 'tttf'; did you mean 'ttft'?" in refusal(
        whatif(SWEEP | {"slos": {"tttf.p99": 0.5}})
    )
    assert "unknown key axis; did you mean 'axes'?" in refusal(whatif({"axis": {}}))
    assert "slos: needed for goodput and capacity" in refusal(whatif(SWEEP | {"slos": {}}))
    assert "prices: needed for a cost" in refusal(whatif(SWEEP | {"objective": "cost_per_hour"}))
    assert "sample.points: 99 of a grid of 16 points" in refusal(
        whatif(SWEEP | {"sample": {"points": 99}})
    )
    requests = load_workload(MEASURED).requests.select(CORE)
    trace = write_bundle(
        tmp_path / "trace", Manifest("simulated", "client"), {"requests": requests}
    )
    assert "base: needed, the workload has no deployment of its own" in refusal(
        whatif(SWEEP, workload=trace.path)
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "exists and is not a sweep's" in refusal(whatif(SWEEP, "--out", tmp_path / "mine"))


def test_no_feasible_point_says_why_point_by_point(whatif: Callable[..., Result]) -> None:
    content = SWEEP | {
        "axes": {"engine.max_num_batched_tokens": [3, 512], "replicas": [4]},
        "constraints": {"gpus": 2},
    }
    result = whatif(content)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "frontier: point 0 (max_num_batched_tokens=3): infeasible: clusters[main].engine."
        "max_num_batched_tokens: 3 is smaller than max_num_seqs 64",
        "frontier: point 1 (max_num_batched_tokens=512): infeasible: gpus: 4 where at most 2 are "
        "allowed",
    ]
    assert "None of 2 points is feasible." in result.output


def test_keys_reach_every_part_of_a_deployment() -> None:
    raw: dict[str, Any] = {
        "model": "m",
        "clusters": [{"name": "p", "replicas": 1}, {"name": "d", "engine": {"block_size": 16}}],
        "links": [{"from": "p", "to": "d", "bandwidth_gb_s": 1}],
    }
    for key, value in {
        "clusters[p].replicas": 4, "clusters[1].engine.block_size": 32, "routing.policy": "vllm_dp",
        "links[p->d].bandwidth_gb_s": 50, "pipeline.micro_batches": 3,
        "moe.expert_load.from": "zipf", "moe.placement": "eplb",
    }.items():  # fmt: skip
        put(raw, key, value)
    assert raw == {
        "model": "m",
        "clusters": [{"name": "p", "replicas": 4}, {"name": "d", "engine": {"block_size": 32}}],
        "links": [{"from": "p", "to": "d", "bandwidth_gb_s": 50}],
        "routing": {"policy": "vllm_dp"}, "pipeline": {"micro_batches": 3},
        "moe": {"expert_load": {"from": "zipf"}, "placement": "eplb"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"of which cluster\? write clusters\[p\]\.replicas"):
        put(raw, "replicas", 2)


def test_captured_blocks_follow_what_they_hold_for() -> None:
    def deployment(**engine: Any) -> dict[str, Any]:
        engine = {"num_gpu_blocks": 100, "block_size": 16} | engine
        return {"model": "m", "clusters": [{"name": "main", "engine": engine}]}

    def after(changed: dict[str, Any]) -> Any:
        settle_memory(deployment(), changed)
        return changed["clusters"][0]["engine"].get("num_gpu_blocks")

    assert after(deployment()) == 100
    assert after(deployment(block_size=32)) == 50
    assert after(deployment(tensor_parallel_size=1)) == 100  # as it was, by default
    assert after(deployment(tensor_parallel_size=2)) is None
    assert after(deployment(tensor_parallel_size=2, num_gpu_blocks=70)) == 70
    assert after(deployment(max_num_seqs=8)) == 100


def test_a_sample_is_drawn_from_its_seed() -> None:
    grid = {"replicas": list(range(20)), "rate_scale": [1, 2, 3]}
    ranges = {"rate_scale": {"from": 0.5, "to": 8.0, "log": True}, "replicas": {"from": 1, "to": 3}}
    for axes, count in ((grid, 30), (ranges, 200)):
        found = [
            points_of(
                Sweep.model_validate({"axes": axes, "sample": {"points": count, "seed": s}}), "s"
            )
            for s in (1, 1, 2)
        ]
        assert found[0] == found[1] != found[2]
        assert len(found[0]) == count
    assert {p["replicas"] for p in found[0]} == {1, 2, 3}
    assert all(0.5 <= p["rate_scale"] <= 8.0 for p in found[0])


def test_a_deployment_hash_does_not_know_where_files_lie(
    tmp_path: Path, dense_profile: Path
) -> None:
    def raw(name: str) -> str:
        home = tmp_path / name
        home.mkdir()
        (home / "model.json").write_bytes((MEASURED / "model.json").read_bytes())
        deployment = {"model": "model.json", "clusters": [{"hardware": "cpu"}]}
        bases = Bases(home)
        bases.load("b", sweep_file(home / "d.yaml", deployment), dense_profile)
        bases.default = "b"
        return json.dumps(bases.deployment({"replicas": 2})[0])

    assert raw("here") == raw("there")


def test_a_sweep_file_is_read_whole(tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path / "s.yaml", {"axes": [{"a": 1}, {"b": [1, 2]}], "points": [{"c": 3}]}
    )
    assert load_sweep(file).set_keys == ["a", "b", "c"]
    assert points_of(load_sweep(file), "s") == [{"c": 3}, {"a": 1}, {"b": 1}, {"b": 2}]


@pytest.mark.parametrize("name", ["overhead.yaml", "experts.yaml"])
def test_all_that_a_profile_says_travels_and_counts(
    tmp_path: Path, dense_profile: Path, name: str
) -> None:
    """A worker elsewhere gets a copy, and a point of another profile is another point."""
    profile = shutil.copytree(dense_profile, tmp_path / "profile")
    files = Files()
    bare = files.add("operators", profile)
    (profile / name).write_text("schema: 1\n")
    whole = files.add("operators", profile)
    assert bare != whole
    files.places[whole] = str(tmp_path / "not here")
    home = tmp_path / "worker"
    home.mkdir()
    files.lay_out(home)
    assert (home / whole / name).read_text() == "schema: 1\n"
