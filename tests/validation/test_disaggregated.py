"""Several clusters, KV transfers and stages: each part of the chain is compared by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from disaggregated import STAGES, af_bundle, pd_bundle
from small_world import profile, run_pair, workload

from reports import write_all
from reports.figures import over_time
from reports.scorecard_file import read_scorecard
from traces.bundle import Bundle, read_bundle
from traces.metrics import HANDOVER
from validation.bars import judge, load_bars
from validation.compared import metric_named
from validation.comparison import compared
from validation.samples import View
from validation.scorecard import build
from validation.series import over_steps


def values(bundle: Bundle) -> dict[str, np.ndarray]:
    return View(bundle, np.arange(len(bundle.requests))).values


def test_the_chain_of_a_request_adds_up(tmp_path: Path) -> None:
    found = values(pd_bundle(tmp_path / "b"))
    parts = [found[name] for name in ("queue", *HANDOVER)]
    np.testing.assert_allclose(np.sum(parts, axis=0), found["e2e"])
    assert list(found) == [
        "ttft", "tpot", "e2e", "queue", *HANDOVER, "step_time.decode", "step_time.prefill",
        "batch_size.decode", "batch_size.prefill", "kv_use.decode", "kv_use.prefill", "throughput",
    ]  # fmt: skip
    assert set(found["batch_size.decode"]) == {4}
    assert set(found["kv_use.decode"]) == {1 - 40 / 50}
    assert set(found["kv_use.prefill"]) == {1 - 40 / 100}


@pytest.mark.parametrize("part", ["queue", *HANDOVER])
def test_a_slower_part_is_the_only_one_in_error(tmp_path: Path, part: str) -> None:
    measured, simulated = pd_bundle(tmp_path / "m"), pd_bundle(tmp_path / "s", slower={part: 2.0})
    card = build(measured, simulated)
    errors = {n: card.metrics[n].statistics["mean"].error for n in ("queue", *HANDOVER)}
    assert errors.pop(part) == pytest.approx(1.0)
    assert all(abs(e or 0.0) < 1e-9 for e in errors.values()), errors
    e2e = card.metrics["e2e"].statistics["mean"]
    assert e2e.absolute == pytest.approx(card.metrics[part].statistics["mean"].absolute)


def test_clusters_are_judged_by_themselves(tmp_path: Path) -> None:
    bundles = pd_bundle(tmp_path / "m"), pd_bundle(tmp_path / "s", slower={"decode": 1.5})
    comparison = compared(*bundles)
    (tmp_path / "bars.yaml").write_text(
        "step_time.prefill: {mean: 0.01}\nstep_time.decode: {mean: 0.01}\n"
    )
    bars = load_bars(tmp_path / "bars.yaml")
    card = build(*bundles)
    judged = write_all(card, comparison, tmp_path / "out", bars)
    assert [j.passed for j in judged] == [True, False]
    assert judge(read_scorecard(tmp_path / "out"), bars) == judged
    assert 'data-metric="step_time.decode"' in (tmp_path / "out" / "report.html").read_text()
    assert "Step time, decode" in (tmp_path / "out" / "report.md").read_text()


def test_stages_of_steps(tmp_path: Path) -> None:
    measured = af_bundle(tmp_path / "m")
    card = build(measured, af_bundle(tmp_path / "s", slower={"a2f": 3.0}))
    found = {s: card.metrics[f"stage.{s}"] for s in STAGES}
    assert found["a2f"].statistics["mean"].error == pytest.approx(2.0)
    assert found["ffn"].statistics["mean"].error == pytest.approx(0.0)
    assert found["ffn"].values["measured"] == 40 * 2 * 2
    assert found["ffn"].metric.label == "Stage ffn"
    assert card.metrics["step_time.attention"].statistics["mean"].error > 0.1  # type: ignore[operator]


def test_what_only_one_side_has_is_told(tmp_path: Path) -> None:
    measured, simulated = pd_bundle(tmp_path / "m"), af_bundle(tmp_path / "s")
    missing = build(measured, simulated).coverage["metrics_missing"]
    assert missing["transfer"] == "only in measured"
    assert missing["step_time.decode"] == "only in measured"
    assert missing["step_time.attention"] == "only in simulated"
    assert missing["itl"] == "recorded in neither"
    assert "step_time" not in missing


def test_an_unknown_metric_is_refused() -> None:
    for name in ("step_tim.decode", "ttft.decode", "stage", "step_time."):
        with pytest.raises(KeyError):
            metric_named(name)


def test_the_report_shows_backpressure(tmp_path: Path) -> None:
    """Decode holds few requests: what prefill has done for others fills its memory, and stays."""
    work, fine = workload(tmp_path / "work", requests=40), profile(tmp_path / "p")
    small = {"prefill": {"num_gpu_blocks": 60}, "decode": {"num_gpu_blocks": 30}}
    paths = [
        run_pair(tmp_path, "tight", work, fine, **small),
        run_pair(tmp_path, "roomy", work, fine),
    ]
    views = compared(*map(read_bundle, paths)).views
    use = {
        (name, side): over_steps(view, f"kv_use.{side}")
        for name, view in zip(("tight", "roomy"), views, strict=True)
        for side in ("p", "d")
    }
    full = {key: np.nanmean(series.value > 0.7) for key, series in use.items() if series}
    assert full["tight", "p"] > 0.3
    assert full["tight", "d"] > 0.3
    assert full["roomy", "p"] == full["roomy", "d"] == 0
    tight = use["tight", "p"]
    assert tight is not None
    assert not np.isnan(tight.value[5:]).any()  # while prefill is stopped there is no step
    requests = read_bundle(paths[0]).requests.to_pandas()
    assert (requests["status"] == "finished").all()
    waits = requests["scheduled_s"] - requests["queued_s"]
    assert waits.max() > 1.0  # the pressure reaches the queue
    assert {c.key for c in over_time(views)} >= {"kv_use.p_over_time", "kv_use.d_over_time"}
