"""The recording subclasses of vLLM's schedulers decide the same, and write down what they did.

Asynchronous scheduling cannot be served on a CPU, so this is where its recording is tested.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scheduler_world import Case, Trace, random_case, run

from replay.command import HOOKS
from traces.bundle import Bundle
from traces.spool import read_spool

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # torch warns
pytest.importorskip("vllm")

CASES = 20  # of each kind


@pytest.mark.parametrize("asynchronous", [False, True])
def test_recorded_as_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    monkeypatch.setattr(sys, "path", [str(HOOKS), *sys.path])
    from frontier_hooks.scheduler import RecordedAsyncScheduler, RecordedScheduler
    from vllm_side import VllmSide

    base = RecordedAsyncScheduler if asynchronous else RecordedScheduler
    monkeypatch.setenv("FRONTIER_KEY", "00" * 16)
    preempted = hits = 0
    for seed in range(CASES):
        case = random_case(seed, asynchronous=asynchronous)
        spool = tmp_path / str(seed) / "spool"
        monkeypatch.setenv("FRONTIER_SPOOL", str(spool))
        recorded = run(VllmSide(case, str(tmp_path), base), case)
        assert recorded.steps == run(VllmSide(case, str(tmp_path)), case).steps
        bundle = read_spool(spool.parent)
        check(case, recorded, bundle)
        preempted += sum(bundle.table("steps")["preempted"].to_pylist())
        hits += sum((n or 0) > 0 for n in bundle.requests["cached_tokens"].to_pylist())
    assert preempted > 20
    assert hits > 20


def check(case: Case, trace: Trace, bundle: Bundle) -> None:
    """Every step of the trace that ran something is in the bundle, and nothing else."""
    assert bundle.manifest.deployment["clusters"][0]["engine"]["async_scheduling"] == (
        case.config.async_scheduling
    )
    rows: dict[int, list[tuple[str, int]]] = {}
    emitted: dict[str, int] = {}
    for row in bundle.table("step_requests").to_pylist():
        name = row["request_id"]
        rows.setdefault(row["step"], []).append((name, row["scheduled_tokens"]))
        emitted[name] = emitted.get(name, 0) + row["emitted_tokens"]
    steps = bundle.table("steps").to_pylist()
    ran = [step for step in trace.steps if step[0]]
    complete = len(steps)  # a world without an end stops with a step in flight
    assert len(ran) - case.config.max_concurrent_batches < complete <= len(ran)
    for (batch, preempted, free, running, waiting), step in zip(ran, steps, strict=False):
        assert rows[step["step"]] == batch
        found = (step["preempted"], step["free_blocks"], step["running"], step["waiting"])
        assert found == (len(preempted), free, len(running), waiting)
    for row in bundle.requests.to_pylist():
        assert emitted.get(row["request_id"], 0) == row["output_tokens"]
        if row["status"] != "finished":
            continue
        arrival = next(a for a in case.arrivals if a.name == row["request_id"])
        wanted = (len(arrival.prompt), len(arrival.output))
        assert (row["prompt_tokens"], row["output_tokens"]) == wanted
        assert len(row["block_hashes"]) == sum(wanted) // case.config.block_size
