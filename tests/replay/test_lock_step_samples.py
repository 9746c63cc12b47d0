"""A real DP2+EP2 deployment: when its ranks stopped, and how long its requests took."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from replay.plan import make_plan
from replay.simulate import replay
from simulator.records import Collected
from simulator.routing.vllm_dp import VllmDP
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import save_profile
from traces.bundle import Bundle, read_bundle
from traces.load import load_workload
from traces.metrics import request_metrics
from traces.samples import sample_runs

LOADS = ("moe-dp2ep2-low", "moe-dp2ep2-high")
RUNS = [run for load in LOADS for run in sample_runs(load)]
SYNC = 16
IDLE_S = 0.02
BAR = 0.05


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_ranks_stop_where_the_rule_says(run: Path) -> None:
    """From recorded times: at step 1 and every 16th of a wave, if no request is left."""
    bundle = read_bundle(run, eager=False)
    frame = bundle.table("steps").to_pandas()
    assert frame.groupby("step")["replica"].nunique().eq(2).all()
    steps = frame.groupby("step").agg(start=("start_s", "min"), end=("end_s", "max"))
    requests = bundle.requests.to_pandas()
    wave, waves = 0, []
    for end, pause in zip(steps["end"], steps["start"].shift(-1) - steps["end"], strict=True):
        wave += 1
        left = ((requests["queued_s"] <= end + 1e-3) & (requests["finished_s"] > end + 1e-3)).any()
        stops = (wave == 1 or wave % SYNC == 0) and not left
        if np.isfinite(pause):  # the capture itself ended after the last step
            assert (pause > IDLE_S) == stops, f"step {wave} of a wave, {pause} s before the next"
        if stops:
            waves.append(wave)
            wave = 0
    assert len(waves) >= 2


@pytest.mark.parametrize(("seen", "held"), [LOADS, LOADS[::-1]])
def test_a_free_run_at_the_other_load(seen: str, held: str, tmp_path: Path) -> None:
    save_profile(fit_profile([read_bundle(run) for run in sample_runs(seen)]), tmp_path)
    means: dict[str, list[tuple[float, float]]] = {"ttft": [], "tpot": [], "e2e": []}
    dummies = []
    for run in sample_runs(held):
        plan, measured = make_plan(run, operators=tmp_path), read_bundle(run)
        steps = Collected()
        manifest, tables = replay(load_workload(run), plan, record=("steps",), sink=steps)
        simulated = request_metrics(Bundle(run, manifest, tables))
        for name, pair in means.items():
            real = request_metrics(measured)[name]
            pair.append((float(np.nanmean(real)), float(np.nanmean(simulated[name]))))
        dummies.append(
            [
                sum(t["dummy"].to_pylist())
                for t in (measured.table("steps"), steps.tables()["steps"])
            ]
        )
    for name, pairs in means.items():
        real_s, simulated_s = np.mean(pairs, axis=0)
        error = simulated_s / real_s - 1
        print(f"{held}, fitted on {seen}: {name} {real_s * 1e3:.1f} ms, {error:+.1%}")
        assert abs(error) < BAR
    real_n, simulated_n = np.mean(dummies, axis=0)
    print(f"dummy batches: {real_n:.0f} recorded, {simulated_n:.0f} simulated")
    assert simulated_n == pytest.approx(real_n, rel=0.15)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.parent.name}-{run.name}")
def test_the_router_chooses_as_the_recorded_front_end_did(run: Path) -> None:
    """Given the loads that it saw, when it saw them."""
    choices = read_bundle(run).table("routing").to_pylist()
    ranks = [SimpleNamespace(unfinished=0) for _ in choices[0]["in_flight"]]
    router = VllmDP(ranks)
    for row in choices:
        for rank, unfinished in zip(ranks, row["in_flight"], strict=True):
            rank.unfinished = unfinished
        loads = zip(row["waiting"], row["running"], row["kv_usage_frac"], strict=True)
        router.publish(list(loads))
        assert router.choose() == row["replica"], row
    assert {row["replica"] for row in choices} == {*range(len(ranks))}
