"""The scorecard says what two bundles say, no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_bundles import fake_bundle, fake_pair

from traces.bundle import bundle_hash
from traces.errors import TraceError
from traces.metrics import request_metrics
from validation.scorecard import build


def test_numbers_are_numpys_over_the_pairs(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path)
    card = build(measured, simulated)
    here, there = (request_metrics(b)["e2e"][4:] for b in (measured, simulated))
    p90 = card.metrics["e2e"].statistics["p90"]
    assert p90.measured == np.percentile(here, 90)
    assert p90.simulated == np.percentile(there, 90)
    assert p90.error == p90.simulated / p90.measured - 1
    assert p90.ci
    assert p90.ci[0] < p90.error < p90.ci[1]
    assert (p90.noise, p90.like_another_run, p90.noise_multiple) == (None, None, None)
    assert card.metrics["e2e"].distances["paired_mape"] == np.mean(np.abs(there / here - 1))


def test_every_metric_both_sides_have_is_there(tmp_path: Path) -> None:
    card = build(*fake_pair(tmp_path))
    assert list(card.metrics) == [
        "ttft", "tpot", "itl", "e2e", "queue", "step_time", "batch_size", "kv_use", "throughput",
    ]  # fmt: skip
    assert card.coverage["metrics_missing"] == {}


def test_a_metric_of_one_side_is_named_as_missing(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path, deployment={})
    card = build(measured, simulated)
    assert "kv_use" not in card.metrics
    assert card.coverage["metrics_missing"]["kv_use"] == "only in measured"


def test_repeats_make_measured_a_mean_and_give_the_noise(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path)
    repeats = [fake_bundle(tmp_path / f"r{i}", seed=20 + i, warmups=4) for i in range(3)]
    card = build(measured, simulated, repeats)
    means = [np.nanmean(request_metrics(b)["tpot"][4:]) for b in (measured, *repeats)]
    found = card.metrics["tpot"].statistics["mean"]
    assert found.measured == pytest.approx(np.mean(means))
    assert found.noise == pytest.approx(np.std(means, ddof=1) / np.mean(means))
    assert found.noise_multiple == pytest.approx(abs(found.error or 0) / (found.noise or 1))
    assert card.metrics["tpot"].values["runs"] == 4
    floor, error = card.metrics["tpot"].floor, card.metrics["tpot"].distances
    assert set(floor) == set(error)
    assert floor["paired_mape"] < error["paired_mape"]  # 4 % slow stands out of the noise
    assert card.metrics["tpot"].statistics["mean"].like_another_run is False
    assert card.coverage["repeats"][0] == {
        "name": "r0", "requests": 124, "compared": 120, "missing": 0,
    }  # fmt: skip


def test_another_run_of_the_real_system_is_not_told_from_one(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", seed=0)
    repeats = [fake_bundle(tmp_path / f"r{i}", seed=20 + i) for i in range(5)]
    other = fake_bundle(tmp_path / "other", seed=77)
    card = build(measured, other, repeats)
    assert card.provenance["comparison"] == "A/A"
    tests = [
        s.like_another_run for name in ("ttft", "tpot", "e2e")
        for s in card.metrics[name].statistics.values()
    ]  # fmt: skip
    assert sum(map(bool, tests)) >= 13  # of 15, one in twenty fails by chance


def test_a_fitted_run_is_no_hold_out(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m")
    repeat = fake_bundle(tmp_path / "r", seed=3)

    def holdout(name: str, fitted: object, repeats: tuple = ()) -> object:  # type: ignore[type-arg]
        notes = {"operators": {"profile": "p", "fitted_on": fitted}} if fitted is not None else {}
        simulated = fake_bundle(tmp_path / name, kind="simulated", seed=9, notes=notes)
        return build(measured, simulated, repeats).provenance["holdout"]

    assert holdout("s1", ["0" * 32]) is True
    assert holdout("s2", [bundle_hash(measured)]) is False
    assert holdout("s3", [{"hash": bundle_hash(measured), "name": "m"}]) is False
    assert holdout("s4", [bundle_hash(repeat)]) is True
    assert holdout("s5", [bundle_hash(repeat)], (repeat,)) is False
    assert holdout("s6", None) is None


def test_coverage_tells_what_the_simulator_left(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path, blocks=360)
    coverage = build(measured, simulated).coverage
    assert coverage["predictions"] == {
        "step_time": {"predictions": 1000, "extrapolated": 12, "share": 0.012}
    }
    assert coverage["kv_capacity"] == "captured"
    assert coverage["ignored"] == {"measured": [], "simulated": ["LoRA"]}
    assert coverage["deployment_differs"] == ["clusters[main].engine.num_gpu_blocks: 401 -> 361"]
    assert coverage["requests"]["measured"]["warmups"] == 4


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path)
    client = fake_bundle(tmp_path / "client", seed=4, vantage="client")
    with pytest.raises(
        TraceError, match=r"seen by the engine, .*client by the client: .*--allow-vantage-mix"
    ):
        build(client, simulated)
    build(client, simulated, allow_vantage_mix=True)
    with pytest.raises(TraceError, match="the same run as"):
        build(measured, simulated, [measured])
    stranger = fake_bundle(tmp_path / "x", prefix="x")
    with pytest.raises(TraceError, match=r"--repeats .*no request in common"):
        build(measured, simulated, [stranger])


def test_the_workload_hash_ignores_times_and_warm_ups(tmp_path: Path) -> None:
    one = build(*fake_pair(tmp_path)).provenance
    other = fake_bundle(tmp_path / "again", seed=5, warmups=4)
    simulated = fake_bundle(tmp_path / "s2", seed=6, kind="simulated")
    two = build(other, simulated).provenance
    assert one["workload_hash"] == two["workload_hash"]
    assert one["measured"]["hash"] != two["measured"]["hash"]


def test_another_model_is_a_difference_of_the_deployments(tmp_path: Path) -> None:
    measured, simulated = fake_pair(tmp_path)
    for bundle, layers in ((measured, 2), (simulated, 3)):
        bundle.manifest.deployment["model"] = "model.json"
        (bundle.path / "model.json").write_text(f'{{"layers": {layers}}}')
    assert build(measured, simulated).coverage["deployment_differs"] == ["model: another config"]
