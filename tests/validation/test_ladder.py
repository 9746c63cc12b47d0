"""The ladder puts the blame where a fault was seeded, and nowhere if there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from small_world import profile, run, workload

from replay.plan import load_step_time, make_plan
from replay.simulate import run_replay
from simulator.scheduling.fcfs import FCFS
from simulator.scheduling.request import Request
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import save_profile
from traces.bundle import read_bundle, write_table
from traces.errors import TraceError
from traces.samples import sample_runs
from validation.ladder import LADDER_METRICS, Simulator, build_ladder

TINY_S = 1e-9
TIGHT = {"num_gpu_blocks": 60}
LOCK_STEP = {"model": "traces/models/qwen3-30b-a3b.json", "data_parallel_size": 2}


def climb(measured: Path, simulated: Path, operators: Path) -> dict[str, Any]:
    plan = make_plan(simulated, operators=operators)
    model, note = load_step_time(plan)
    configs = make_plan(measured).scheduler_config(), plan.scheduler_config()
    simulator = Simulator(*configs, model, note["profile"])
    return build_ladder(read_bundle(measured), read_bundle(simulated), simulator)


def terms(ladder: dict[str, Any], metric: str) -> dict[str, float]:
    return {t["name"]: t[metric] for t in ladder["terms"]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workload(tmp_path_factory.mktemp("work") / "workload")


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"async_scheduling": True},
        TIGHT,
        {**TIGHT, "async_scheduling": True},
        {"replicas": 2, "router": "least_loaded"},
        {**LOCK_STEP, "replicas": 2, "router": "vllm_dp"},
        {**LOCK_STEP, **TIGHT, "async_scheduling": True},
    ],
    ids=[
        "sync",
        "async",
        "preempting",
        "preempting async",
        "two replicas",
        "lock-step",
        "lock-step async",
    ],
)
def test_without_a_fault_every_rung_is_the_measured_run(
    work: Path, tmp_path: Path, layout: dict[str, Any]
) -> None:
    """Recorded and predicted runs are one to the picosecond, the simulator's own engine too."""
    fine = profile(tmp_path / "p")
    paths = [run(tmp_path, name, work, fine, layout) for name in ("m", "s")]
    ladder = climb(paths[0], paths[1], fine)
    for metric in LADDER_METRICS:
        assert max(abs(v) for v in terms(ladder, metric).values()) < TINY_S
    assert ladder["schedule"]["first"] is None
    assert ladder["schedule"]["share"] == 1.0
    assert ladder["steps"]["kinds"]["all"]["mape"] < 1e-9
    if not {"data_parallel_size", "async_scheduling"} <= {*layout}:  # some waits count as gaps
        assert ladder["steps"]["effect"]["ttft"] == pytest.approx(0, abs=TINY_S)


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    # name: (of the profile, of the simulated run, the term to blame)
    "slow operators": ({"slower": 1.1}, {}, "operators"),
    "no host overhead": ({"host": 0.0}, {}, "host_overhead"),
    "slow front end": ({"frontend_s": 0.02}, {}, "arrivals"),
    "other arrivals": ({}, {"rate_scale": 1.2}, "arrivals"),
    "fewer blocks": ({}, {"layout": {"num_gpu_blocks": 48}}, "kv_capacity"),
    "fewer seats": ({}, {"layout": {**TIGHT, "max_num_seqs": 3}}, "settings"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "more", [{}, {"async_scheduling": True}, LOCK_STEP], ids=["sync", "async", "lock-step"]
)
def test_a_seeded_fault_is_the_largest_term(
    work: Path, tmp_path: Path, fault: str, more: dict[str, Any]
) -> None:
    changes, options, blamed = FAULTS[fault]
    layout: dict[str, Any] = {**TIGHT, **more}
    measured = run(tmp_path, "m", work, profile(tmp_path / "p"), layout)
    faulty = profile(tmp_path / "q", **changes)
    layout |= options.get("layout", {})
    rest = {k: v for k, v in options.items() if k != "layout"}
    simulated = run(tmp_path, "s", work, faulty, layout, **rest)
    ladder = climb(measured, simulated, faulty)
    assert ladder["largest"]["ttft"] == blamed, ladder["terms"]
    for metric in LADDER_METRICS:
        found = terms(ladder, metric)
        first, last = ladder["rungs"][0][metric], ladder["rungs"][-1][metric]
        assert sum(found.values()) == pytest.approx(last - first)
        assert abs(found["rest"]) < TINY_S
        assert abs(found["record"]) + abs(found["scheduling"]) < TINY_S


def test_another_router_is_blamed(work: Path, tmp_path: Path) -> None:
    fine = profile(tmp_path / "p")
    measured = run(tmp_path, "m", work, fine, {"replicas": 2, "router": "least_loaded"})
    simulated = run(tmp_path, "s", work, fine, {"replicas": 2})
    ladder = climb(measured, simulated, fine)
    assert set(ladder["largest"].values()) == {"routing"}


def test_steps_that_follow_the_batch_are_not_blamed_on_scheduling(
    work: Path, tmp_path: Path
) -> None:
    """Measured steps are 10 % slower than predicted, so the free run has other batches."""
    measured = run(tmp_path, "m", work, profile(tmp_path / "p", slower=1.1), TIGHT)
    fast = profile(tmp_path / "q")
    ladder = climb(measured, run(tmp_path, "s", work, fast, TIGHT), fast)
    assert terms(ladder, "ttft")["scheduling"] == pytest.approx(0, abs=TINY_S)
    assert ladder["schedule"]["share"] == 1.0
    assert ladder["steps"]["parts"]["forward"]["error"] == pytest.approx(1 / 1.1 - 1)
    assert ladder["steps"]["effect"]["tpot"] < 0


@pytest.fixture
def preempts_the_first(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turn the order of preemption round."""

    def victim(self: FCFS, running: list[Request]) -> int:
        return 0

    return lambda: monkeypatch.setattr(FCFS, "victim", victim)


def test_a_wrong_rule_is_located(
    work: Path, tmp_path: Path, preempts_the_first: Callable[[], None]
) -> None:
    """The first divergence is a preemption: its step, its request, and what was done instead."""
    fine = profile(tmp_path / "p")
    measured = run(tmp_path, "m", work, fine, TIGHT)
    simulated = run(tmp_path, "s", work, fine, TIGHT)
    preempts_the_first()
    ladder = climb(measured, simulated, fine)
    first = ladder["schedule"]["first"]
    assert ladder["schedule"]["share"] < 1
    steps = read_bundle(measured).table("steps")
    preempting = steps.filter(pc.greater(steps["preempted"], 0))["step"].to_pylist()
    assert first["step"] == preempting[0]
    assert "the simulator preempted it in this step" in first["why"]
    assert (first["engine_tokens"], first["simulator_tokens"]) == (1, 0)
    assert ladder["largest"]["ttft"] in ("scheduling", "rest")  # the run itself has no fault
    assert abs(terms(ladder, "ttft")["scheduling"]) > 1e-3


def test_other_ranks_in_step_are_refused(work: Path, tmp_path: Path) -> None:
    fine = profile(tmp_path / "p")
    layouts = {**LOCK_STEP}, {**LOCK_STEP, "data_parallel_size": 4}
    paths = [run(tmp_path, f"r{i}", work, fine, layout) for i, layout in enumerate(layouts)]
    with pytest.raises(TraceError, match=r"4 ranks step together, in .* 2: --ladder needs as many"):
        climb(paths[0], paths[1], fine)


@pytest.mark.parametrize("group", ["moe-dp2ep2-low", "moe-dp2ep2-high"])
def test_a_captured_lock_step_deployment(group: str, tmp_path: Path) -> None:
    """Its schedule is the simulator's, and nothing is left that the ladder does not explain."""
    first, *others = sample_runs(group)
    save_profile(fit_profile([read_bundle(run) for run in others]), tmp_path / "p")
    run_replay(first, first, tmp_path / "s", operators=tmp_path / "p", record="steps")
    ladder = climb(first, tmp_path / "s", tmp_path / "p")
    assert ladder["schedule"]["share"] == 1.0
    for metric in LADDER_METRICS:
        found, measured = terms(ladder, metric), ladder["rungs"][0][metric]
        assert abs(found["record"]) < 2e-3 * measured  # one clock for both ranks
        assert found["scheduling"] == pytest.approx(0, abs=TINY_S)
        assert found["rest"] == pytest.approx(0, abs=TINY_S)


def test_what_cannot_be_climbed_is_refused(work: Path, tmp_path: Path) -> None:
    fine = profile(tmp_path / "p")
    measured, simulated = (run(tmp_path, name, work, fine) for name in ("m", "s"))
    other = profile(tmp_path / "q", slower=2.0)
    with pytest.raises(TraceError, match="simulated with another operator profile"):
        climb(measured, simulated, other)
    bundle = read_bundle(measured)
    write_table(measured, "requests", bundle.requests.drop_columns(["queued_s"]))
    with pytest.raises(TraceError, match="queued_s"):
        climb(measured, simulated, fine)
    (measured / "step_requests.parquet").unlink()
    with pytest.raises(TraceError, match=r"no step_requests.parquet"):
        climb(measured, simulated, fine)
    bundle.manifest.deployment["clusters"].append({"name": "d", "role": "decode"})
    plan = make_plan(simulated, operators=fine)
    simulator = Simulator(*[plan.scheduler_config()] * 2, load_step_time(plan)[0])
    with pytest.raises(TraceError, match="one co-located cluster"):
        build_ladder(bundle, read_bundle(simulated), simulator)
