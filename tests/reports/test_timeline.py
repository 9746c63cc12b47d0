"""``frontier timeline``: a file that follows the Trace Event Format, on one clock."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from replay.cli import main
from reports.timeline import lanes, write_timeline
from traces.bundle import Manifest, read_bundle, write_bundle
from traces.samples import HOME, sample_runs

MEASURED = sample_runs("dense-high")[0]
Event = dict[str, Any]


def events_of(path: Path) -> list[Event]:
    """The events of a trace, after all the format's rules were held to them."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    trace = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events: list[Event] = trace["traceEvents"]
    names: dict[str, set[Any]] = {"process_name": set(), "thread_name": set()}
    for event in events:
        assert {"ph", "pid", "tid", "name", "args"} <= event.keys()
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            assert event["name"] in (*names, "process_sort_index")
            if event["name"] in names:
                assert isinstance(event["args"]["name"], str)
                key = (event["pid"], event["tid"])
                names[event["name"]].add(key if event["name"] == "thread_name" else key[0])
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(v, int | float) for v in event["args"].values())
            assert event["ts"] >= 0
        else:
            assert event["ph"] == "X"
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert event["cat"]
    timed = [e for e in events if e["ph"] != "M"]
    assert {e["pid"] for e in timed} <= names["process_name"]
    assert {(e["pid"], e["tid"]) for e in timed if e["ph"] == "X"} <= names["thread_name"]
    assert_nested(events)
    return events


def assert_nested(events: list[Event]) -> None:
    """On one thread complete events lie inside one another or apart, never across."""
    threads = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            start = round(e["ts"] * 1000)
            threads[e["pid"], e["tid"]].append((start, -round(e["dur"] * 1000)))
    for intervals in threads.values():
        open_ends: list[int] = []
        for start, minus in sorted(intervals):
            end = start - minus
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


def test_a_capture_and_its_replay_side_by_side(tmp_path: Path, dense_profile: Path) -> None:
    run = CliRunner().invoke
    simulated, out = tmp_path / "sim", tmp_path / "t.json"
    replayed = [str(MEASURED), "--operators", str(dense_profile), "--out", str(simulated)]
    assert run(main, ["replay", *replayed, "--record", "steps"]).exit_code == 0
    result = run(main, ["timeline", str(MEASURED), str(simulated), "--out", str(out)])
    assert result.exit_code == 0, result.output
    events = events_of(out)
    assert result.output.startswith(f"{len(events):,} events: ")
    for k, bundle in enumerate((read_bundle(MEASURED), read_bundle(simulated))):
        mine = [e for e in events if e["pid"] // 1000 == k]
        kinds = {c: [e for e in mine if e.get("cat") == c] for c in ("request", "step", "phase")}
        assert len(kinds["request"]) == len(bundle.requests)
        assert len(kinds["step"]) == len(bundle.table("steps"))
        row = bundle.requests.slice(17, 1).to_pylist()[0]
        shown = next(e for e in kinds["request"] if e["name"] == row["request_id"])
        assert shown["ts"] == pytest.approx(row["arrival_s"] * 1e6, abs=1e-3)
        assert shown["dur"] == pytest.approx((row["finished_s"] - row["arrival_s"]) * 1e6, abs=2e-3)
        assert shown["args"]["prompt_tokens"] == row["prompt_tokens"]
        step = bundle.table("steps").slice(5, 1).to_pylist()[0]
        assert kinds["step"][5]["args"]["running"] == step["running"]
        assert kinds["step"][5]["ts"] == pytest.approx(step["start_s"] * 1e6, abs=1e-3)
    packed = tmp_path / "t.json.gz"
    write_timeline([MEASURED, simulated], packed)
    assert gzip.decompress(packed.read_bytes()) == out.read_bytes()


def bundle_of_everything(path: Path, late_s: float) -> Path:
    """Two steps in flight, micro-batches, collectives across them, transfers; clock ``late_s``."""

    def at(*times: float) -> list[float]:
        return [t + late_s for t in times]

    here = {"cluster": ["d"] * 2, "replica": [0, 0]}
    tables = {
        "requests": pa.table(
            {
                "request_id": ["a", 'b"</script>'], "arrival_s": at(1.0, 1.5),
                "prompt_tokens": [4, 4], "output_tokens": [2, 2],
                "scheduled_s": at(1.25, 1.75), "first_token_s": pa.array([2.0 + late_s, None]),
                "finished_s": pa.array([3.0 + late_s, None]), "status": ["finished", "unfinished"],
            }
        ),
        "steps": pa.table(
            here | {
                "step": [0, 1], "start_s": at(1.25, 1.5), "end_s": at(2.0, 2.5),
                "prefill_tokens": [4, 0], "decode_tokens": [0, 1], "running": [1, 2],
                "waiting": [0, 0],
            }
        ),
        "spans": pa.table(
            {
                "cluster": ["d"] * 3, "replica": [0] * 3, "rank": [0] * 3, "step": [0] * 3,
                "layer": pa.array([0, 0, None], pa.int64()), "micro_batch": [0, 1, 0],
                "stage": ["attention", "attention", "all_reduce"],
                "start_s": at(1.25, 1.5, 1.3), "end_s": at(1.6, 1.8, 1.7),
            }
        ),
        "transfers": pa.table(
            {
                "source": ["p/0", "p/0"], "destination": ["d/0", "d/0"], "request_id": ["a", "b"],
                "bytes": [10, 20], "start_s": at(1.0, 1.1), "end_s": at(1.2, 1.3),
            }
        ),
    }  # fmt: skip
    write_bundle(path, Manifest("simulated"), tables)
    return path


def test_everything_a_bundle_may_hold(tmp_path: Path) -> None:
    here = bundle_of_everything(tmp_path / "b", 0.0)
    there = bundle_of_everything(tmp_path / "late" / "b", 5.0)
    write_timeline([here, there], tmp_path / "t.json")
    events = events_of(tmp_path / "t.json")
    timed = [e for e in events if e["ph"] != "M"]
    sides = [[e | {"pid": 0} for e in timed if e["pid"] // 1000 == k] for k in (0, 1)]
    assert sides[0] == sides[1]  # whatever their clocks, the same request at the same time
    labels = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert {"simulated b (1): d/0", "simulated b (2): KV transfers"} <= labels
    threads = {(e["name"], e["tid"]) for e in sides[0] if e.get("cat") == "stage"}
    assert len({tid for _, tid in threads}) == 3  # a collective across a stage: beside it
    unfinished = next(e for e in sides[0] if e["name"] == 'b"</script>' and e["cat"] == "request")
    assert unfinished["dur"] == 250_000  # up to when it was last seen


def test_a_pipelined_step_measured_and_simulated(tmp_path: Path) -> None:
    """The shipped testbed run in three micro-batches: all stages, and the ping-pong, on both."""
    runs, simulated = HOME / "attention-ffn", tmp_path / "simulated"
    done = CliRunner().invoke(main, ["pipeline", str(runs), "--simulated", str(simulated)])
    assert done.exit_code == 0, done.output
    measured = next(runs.glob("*/*/m3-*"))
    sides = [measured, simulated / measured.relative_to(runs)]
    write_timeline(sides, tmp_path / "t.json")
    stages = [e for e in events_of(tmp_path / "t.json") if e.get("cat") == "stage"]
    for k, path in enumerate(sides):
        step = int(read_bundle(path).table("spans")["step"].to_numpy().max())
        mine = [e for e in stages if e["pid"] // 1000 == k and e["args"]["step"] == step]
        for name in ("attention", "a2f", "ffn", "f2a"):
            layered = [e for e in mine if e["name"] == name and "layer" in e["args"]]
            keys = {(e["args"]["layer"], e["args"]["micro_batch"]) for e in layered}
            assert len(layered) == len(keys) == 4 * 3
        of = {n: [e for e in mine if e["name"] == n] for n in ("attention", "ffn")}
        together_us = sum(
            max(0.0, min(a["ts"] + a["dur"], f["ts"] + f["dur"]) - max(a["ts"], f["ts"]))
            for a in of["attention"] for f in of["ffn"]
            if a["args"]["micro_batch"] != f["args"]["micro_batch"]
        )  # fmt: skip
        assert together_us > 0.1 * sum(e["dur"] for e in of["attention"])


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=40))
def test_lanes_hold_what_does_not_overlap(intervals: list[tuple[int, int]]) -> None:
    start = np.array([s for s, _ in intervals], np.int64)
    end = start + np.array([d for _, d in intervals], np.int64)
    found = lanes(start, end)
    for lane in set(found.tolist()):
        mine = sorted(zip(start[found == lane], end[found == lane], strict=True))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(mine))
    at_once = max((int(((start <= t) & (end > t)).sum()) for t in start), default=0)
    assert len(set(found.tolist())) <= max(at_once, 1)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    run = CliRunner().invoke
    three = run(main, ["timeline", *[str(MEASURED)] * 3, "--out", str(tmp_path / "t")])
    assert (three.exit_code, "one or two bundles, not 3" in three.output) == (2, True)
    (tmp_path / "t").mkdir()
    onto = run(main, ["timeline", str(MEASURED), "--out", str(tmp_path / "t")])
    assert (onto.exit_code, onto.output) == (
        2,
        f"frontier: --out {tmp_path / 't'}: Is a directory\n",
    )
