"""The shipped captures: the same schedule from recorded times, and free runs within the bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from replay.plan import make_plan
from replay.simulate import replay
from simulator.demand import Demand
from simulator.recorded import replay_recorded
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import save_profile
from traces.bundle import Bundle, read_bundle
from traces.metrics import request_metrics
from traces.samples import sample_groups, sample_runs
from traces.workload import bundle_workload

# largest errors of mean, p50, p90 and p99; twice the spread of the repeats, where that is more
BARS = {"mean": 0.05, "p50": 0.08, "p90": 0.08, "p99": 0.15}


@pytest.mark.parametrize(
    "group", [g for g in sample_groups() if "dp2" not in g and "-pd-" not in g]
)
def test_recorded_times_give_the_recorded_batches(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sample_runs(group):
        bundle, config = read_bundle(path), make_plan(path).scheduler_config()
        demand = Demand(bundle.requests, config, bundle.manifest.hash_block_tokens)
        requests = [demand.make(i) for i in range(len(demand))]
        agreement = replay_recorded(bundle, requests, config)
        with capsys.disabled():
            print(f"\n{group}/{path.name}: {agreement.share:.2%} of {agreement.steps} steps equal")
        assert agreement.steps > 1000
        assert agreement.share >= 0.995, agreement.first


def test_preemption_sample_has_preemptions() -> None:
    for path in sample_runs("dense-preempt"):
        requests = read_bundle(path).requests
        assert np.mean(requests["preemptions"].to_numpy() > 0) >= 0.2


def test_tensor_parallel_ranks_meet_in_every_collective() -> None:
    """Twice a layer, for the embedding and for the logits; nobody leaves before all have come."""
    bundle = read_bundle(sample_runs("dense-tp2")[0])
    spans = bundle.table("spans").to_pandas().sort_values(["step", "start_s"], kind="stable")
    layers = 6
    names = ["all_reduce"] * (2 * layers + 1) + ["all_gather"]
    ranks = [spans[spans["rank"] == rank] for rank in (0, 1)]
    for rank in ranks:
        assert rank["stage"].tolist() == names * len(bundle.table("steps"))
    begun = np.maximum(*(rank["start_s"].to_numpy() for rank in ranks))
    assert all((rank["end_s"].to_numpy() > begun).all() for rank in ranks)


@pytest.mark.parametrize(("model", "fitted", "target"), [
    ("dense", "low", "high"), ("dense", "high", "low"),
    ("moe", "low", "high"), ("moe", "high", "low"),
])  # fmt: skip
def test_free_run_at_another_load(
    model: str, fitted: str, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = fit_profile([read_bundle(p) for p in sample_runs(f"{model}-{fitted}")])
    save_profile(profile, tmp_path)
    runs = sample_runs(f"{model}-{target}")
    measured = [statistics(read_bundle(p)) for p in runs]
    workload = bundle_workload(read_bundle(runs[0]))
    manifest, tables = replay(workload, make_plan(runs[0], operators=tmp_path), record=())
    simulated = statistics(Bundle(tmp_path, manifest, tables))
    beyond = {}
    lines = []
    for key, value in simulated.items():
        real = np.array([m[key] for m in measured])
        spread = real.std(ddof=1) / real.mean()
        error, bar = value / real.mean() - 1, max(BARS[key.split()[1]], 2 * spread)
        lines.append(f"{key} {error:+.1%} (s {spread:.1%})")
        if abs(error) > bar:
            beyond[key] = error
    with capsys.disabled():
        print(f"\n{model}, {fitted} to {target}: " + ", ".join(lines))
    assert beyond == {}


def statistics(bundle: Bundle) -> dict[str, float]:
    """Mean and percentiles of each metric over the requests that are no warm-up, seconds."""
    ids = bundle.requests.column("request_id").to_pylist()
    judged = np.array([not i.startswith("warmup-") for i in ids])
    metrics = request_metrics(bundle)
    found = {}
    for name in ("ttft", "tpot", "e2e"):
        values = metrics[name][judged]
        values = values[np.isfinite(values)]
        found[f"{name} mean"] = float(values.mean())
        for q in (50, 90, 99):
            found[f"{name} p{q}"] = float(np.percentile(values, q))
    return found
