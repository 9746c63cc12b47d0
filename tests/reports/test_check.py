"""The gate fails for what got worse, and for nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reports.check import Threshold, compare, run_check
from reports.scorecard_file import write_scorecard
from traces.errors import TraceError
from validation.compared import COMPARED
from validation.scorecard import Bounds, MetricErrors, Scorecard, Statistic

PROVENANCE: dict[str, Any] = {
    "workload_hash": "w",
    "comparison": "simulated against measured",
    "holdout": True,
    "measured": {"hash": "m", "vantage": "engine", "deployment_hash": "d"},
    "simulated": {"hash": "s", "vantage": "engine"},
    "repeats": [],
}
COVERAGE: dict[str, Any] = {
    "requests": {
        "compared": 100, "measured": {"failed": {}}, "simulated": {"failed": {}},
    },
    "ignored": {"measured": [], "simulated": ["LoRA"]},
    "predictions": {"step_time": {"predictions": 100, "extrapolated": 1, "share": 0.01}},
}  # fmt: skip


def card(
    error: float,
    *,
    noise: float | None = None,
    ci: Bounds | None = None,
    run: str = "m",
    scale: float = 1.0,
) -> Scorecard:
    statistic = Statistic(scale, scale * (1 + error), error, ci=ci, noise=noise)
    provenance = copy.deepcopy(PROVENANCE)
    provenance["measured"]["hash"] = run
    if noise is not None:
        provenance["repeats"] = [{"hash": f"{run}{i}"} for i in (1, 2)]
    metrics = {"ttft": MetricErrors(COMPARED["ttft"], {"mean": statistic})}
    return Scorecard(metrics, copy.deepcopy(COVERAGE), provenance)


def kinds(now: Scorecard, base: Scorecard) -> list[str]:
    return [f.kind for f in compare(now, base, Threshold())]


@pytest.mark.parametrize(
    ("now", "base", "fails"),
    [
        (card(0.10), card(0.01), True),
        (card(-0.10), card(0.01), True),  # the other way is as bad
        (card(0.01), card(0.10), False),  # better
        (card(0.03), card(0.015), False),  # 1.5 points are not worth noticing
        (card(0.10, noise=0.06), card(0.01, noise=0.06), False),  # within two noise floors
        (card(0.13, noise=0.06), card(0.01, noise=0.06), True),
        # measured anew, measured alike: t(5) 0.06 sqrt(4 / 5) sqrt(1 / 3 + 1 / 3) = 0.113
        (card(0.12, noise=0.06, run="n"), card(0.01, noise=0.06), False),
        (card(0.13, noise=0.06, run="n"), card(0.01, noise=0.06), True),
        (card(0.10, ci=(0.00, 0.20)), card(0.01), False),  # the interval reaches the old error
        (card(0.10, ci=(0.05, 0.15)), card(0.01), True),
        (card(0.10, ci=(0.05, 0.15), run="n"), card(0.01, ci=(-0.06, 0.08)), False),
        (card(0.10, ci=(0.05, None)), card(0.01), True),
        (card(0.5, scale=1e-5), card(0.1, scale=1e-5), False),  # 4 us
    ],
)
def test_regression(now: Scorecard, base: Scorecard, fails: bool) -> None:
    assert kinds(now, base) == (["regression"] if fails else [])


def real(now: Scorecard, digest: str) -> Scorecard:
    """The same numbers, as of a capture that stands for the simulation."""
    now.provenance["comparison"] = "A/A"
    now.provenance["simulated"]["hash"] = digest
    return now


def test_another_capture_in_the_simulations_place_has_chance_of_its_own() -> None:
    """t(2) 0.03 sqrt(2) = 0.183 must be exceeded, where a simulation's growth of 0.09 fails."""
    assert kinds(card(0.10, noise=0.03), card(0.01, noise=0.03)) == ["regression"]
    base = real(card(0.01, noise=0.03), "a")
    assert kinds(real(card(0.10, noise=0.03), "b"), base) == []
    assert kinds(real(card(0.20, noise=0.03), "b"), base) == ["regression"]
    assert kinds(real(card(0.20), "b"), real(card(0.01), "a")) == []  # no repeats: nobody knows


def test_a_noise_that_is_small_by_chance_is_not_believed() -> None:
    def with_p50(now: Scorecard, error: float) -> Scorecard:
        table = now.metrics["ttft"].statistics
        table["p50"] = Statistic(1.0, 1 + error, error, noise=0.001)
        table["p90"] = Statistic(1.0, 1.0, 0.0, noise=0.05)
        return now

    now = with_p50(card(0.01, noise=0.05, run="n"), 0.05)
    assert kinds(now, with_p50(card(0.01, noise=0.05), 0.0)) == []


def test_what_explains_but_is_not_felt_does_not_fail() -> None:
    now, base = card(0.01), card(0.01)
    for scorecard, error in ((now, 0.5), (base, 0.0)):
        table = {"mean": Statistic(1.0, 1 + error, error)}
        scorecard.metrics["step_time"] = MetricErrors(COMPARED["step_time"], table)
    assert kinds(now, base) == []


def test_a_scorecard_never_regresses_against_itself() -> None:
    for error in (0.0, 0.3, -2.0):
        assert kinds(card(error), card(error)) == []


def test_lost_coverage_is_its_own_verdict() -> None:
    base, now = card(0.01), card(0.01)
    now.coverage["requests"]["compared"] = 90
    now.coverage["ignored"]["simulated"] = ["LoRA", "spec decode"]
    now.coverage["predictions"]["step_time"]["share"] = 0.03
    now.provenance["holdout"] = False
    found = compare(now, base, Threshold())
    assert {f.kind for f in found} == {"lost coverage"}
    assert [f.text for f in found] == [
        "90 requests compared, were 100",
        "3.0 % of step_time predictions extrapolated, was 1.0 %",
        "spec decode is now ignored",
        "no longer a hold-out",
    ]
    without = replace(card(0.01), metrics={})
    assert compare(without, base, Threshold())[0].text == "TTFT is no longer compared"


def test_new_failures_are_their_own_verdict() -> None:
    now = card(0.01)
    now.coverage["requests"]["simulated"]["failed"] = {"aborted": 2}
    (found,) = compare(now, card(0.01), Threshold())
    assert (found.kind, found.text[:25]) == ("new failures", "2 requests did not finish")


def check(path: Path, now: Scorecard, base: Scorecard, *, update: bool = False) -> Any:
    write_scorecard(now, path / "now.json")
    write_scorecard(base, path / "base.json")
    return run_check(path / "now.json", path / "base.json", update=update, threshold=Threshold())


def test_one_line_says_the_worst(tmp_path: Path) -> None:
    _, reason = check(tmp_path, card(-0.2, noise=0.01), card(0.01, noise=0.01))
    assert reason == "regression: TTFT mean is 20.0 % low, was 1.0 % high (noise 1.0 %)"
    _, reason = check(tmp_path, card(0.01), card(0.01))
    assert reason == "pass: no regression in 1 statistics"
    _, reason = check(tmp_path, card(0.1, noise=0.06), card(0.01, noise=0.06))
    assert reason == "pass: no regression in 1 statistics (1 grew, but not beyond the noise)"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda p: p.update(workload_hash="x"), "workload"),
        (lambda p: p["measured"].update(deployment_hash="x"), "measured deployment"),
        (lambda p: p["simulated"].update(vantage="client"), "vantage"),
        (lambda p: p.update(comparison="A/A"), "comparison"),
        (lambda p: p.pop("measured"), "measured deployment"),
    ],
)
def test_other_things_are_not_compared(tmp_path: Path, change: Any, what: str) -> None:
    now = card(0.01)
    change(now.provenance)
    with pytest.raises(TraceError, match=f"{what}.*not comparable"):
        check(tmp_path, now, card(0.01))


def test_the_baseline_changes_only_when_asked(tmp_path: Path) -> None:
    before = check(tmp_path, card(0.3), card(0.01))
    assert before[0]
    findings, reason = check(tmp_path, card(0.3), card(0.01), update=True)
    assert not findings
    assert "baseline updated" in reason
    assert (tmp_path / "base.json").read_bytes() == (tmp_path / "now.json").read_bytes()
    with pytest.raises(TraceError, match="--update-baseline"):
        run_check(
            tmp_path / "now.json", tmp_path / "none.json", update=False, threshold=Threshold()
        )
