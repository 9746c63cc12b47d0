"""Choices of the simulator against choices by measurement, on answers known beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_bundles import fake_bundle

from replay.cli import main
from traces.errors import TraceError
from validation.configurations import OBJECTIVES, Configuration, Objective, read_configurations
from validation.decisions import Limit, decide, parse_limit, pooled_noise

TTFT = Objective("ttft")


def configuration(
    name: str, measured: list[float], simulated: float, *, fitted: bool | None = False
) -> Configuration:
    """One whose runs each have one value of TTFT."""
    runs = [{"ttft": np.array([v])} for v in measured]
    return Configuration(name, [name], runs, {"ttft": np.array([simulated])}, fitted)


def fidelity(*rows: tuple[list[float], float]) -> Any:
    found = decide([configuration(f"c{i}", m, s) for i, (m, s) in enumerate(rows)])
    return found["objectives"]["ttft.mean"]


def test_the_same_order_has_tau_one_and_no_regret() -> None:
    found = fidelity(([1.0, 1.02], 1.1), ([2.0, 2.02], 2.5), ([3.0, 3.02], 2.6))
    assert (found["tau"], found["decided"]["tau"], found["regret"]) == (1.0, 1.0, 0.0)
    assert found["decided"]["pairs"] == found["pairs"] == 3


def test_tau_and_regret_by_hand() -> None:
    """One of three pairs is in the wrong order: (2 - 1) / 3; c1 is chosen, c0 is best."""
    found = fidelity(([1.0, 1.0], 2.0), ([1.2, 1.2], 1.0), ([5.0, 5.0], 4.0))
    assert found["tau"] == pytest.approx(1 / 3)
    assert found["best"] == {"measured": "c0", "simulated": "c1"}
    assert found["regret"] == pytest.approx(0.2)


def test_pairs_within_the_noise_do_not_count() -> None:
    """s is 7 % (runs at +-5 %): c0 and c1 differ by 1 %, their order is nobody's fault."""
    found = fidelity(([0.95, 1.05], 2.0), ([0.96, 1.06], 1.9), ([3.0, 3.0], 4.0))
    assert found["noise"] == pytest.approx(np.sqrt(2 / 3) * 0.0707, rel=0.01)
    assert found["decided"] == {"pairs": 2, "tau": 1.0, "by": "2 s"}
    assert found["tau"] == pytest.approx(1 / 3)


def test_of_equal_choices_the_dearest_counts() -> None:
    found = fidelity(([1.0, 1.0], 1.0), ([1.5, 1.5], 1.0))
    assert found["regret"] == pytest.approx(0.5)


def test_more_throughput_is_better() -> None:
    sides = [(100.0, 90.0), (80.0, 95.0)]
    found = decide(
        [
            Configuration(str(m), [], [{"throughput": np.array([m])}] * 2,
                          {"throughput": np.array([s])}, None)
            for m, s in sides
        ]
    )["objectives"]["throughput.mean"]  # fmt: skip
    assert found["best"] == {"measured": "100.0", "simulated": "80.0"}
    assert found["regret"] == pytest.approx(0.2)


def test_confusion_of_pass_and_fail() -> None:
    rows = [(1.0, 1.0), (1.0, 3.0), (3.0, 1.0), (3.0, 3.0), (2.05, 2.5)]
    configurations = [
        configuration(f"c{i}", [m * 0.98, m * 1.02], s) for i, (m, s) in enumerate(rows)
    ]
    found = decide(configurations, [Limit(TTFT, 2.0)])["slos"]["ttft.mean"]
    counts = [found[k] for k in ("both_pass", "both_fail", "wrong_pass", "wrong_fail")]
    assert counts == [1, 2, 1, 1]
    assert found["agreement"] == pytest.approx(3 / 5)
    assert found["near"] == ["c4"]
    median = decide(configurations)["slos"]["ttft.mean"]
    assert (median["limit"], median["given"]) == (2.05, False)


def test_noise_is_pooled() -> None:
    assert pooled_noise([None, None]) is None
    assert pooled_noise([0.03, None, 0.04]) == pytest.approx(0.0353, abs=1e-4)


def test_limits_are_read() -> None:
    assert parse_limit("ttft.p99=0.5") == Limit(Objective("ttft", "p99"), 0.5)
    assert parse_limit("throughput=100").objective == Objective("throughput")
    with pytest.raises(TraceError, match=r"expected METRIC.STATISTIC=NUMBER"):
        parse_limit("ttft.p99")
    with pytest.raises(TraceError, match=r"did you mean 'ttft.p99'"):
        parse_limit("tft.p99=1")


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """Three configurations of a toy engine, simulated 3 % slow."""
    for i, slower in enumerate((1.0, 1.4, 1.8)):
        folder = tmp_path / "lab" / f"slow{slower}"
        fake_bundle(folder / "measured", seed=i, slower=slower)
        fake_bundle(folder / "simulated", seed=10 + i, slower=1.03 * slower, kind="simulated")
    return tmp_path / "lab"


def test_a_directory_is_read_and_reported(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["decisions", str(lab), "--out", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads((out / "decisions.json").read_text())
    assert set(found["objectives"]) == {o.name for o in OBJECTIVES}
    for name in ("ttft.mean", "tpot.mean", "e2e.p99"):
        assert found["objectives"][name]["tau"] == 1.0
        assert found["objectives"][name]["regret"] == 0.0
    assert found["objectives"]["ttft.mean"]["decided"]["by"] == "95 % interval of the pair"
    assert "the simulator's choice costs at most 0 %" in done.output
    text = (out / "decisions.md").read_text()
    assert "| TTFT mean | 1.00 |" in text


def test_more_runs_give_the_noise(lab: Path, tmp_path: Path) -> None:
    fake_bundle(lab / "slow1.0" / "measured-2", seed=77)
    configurations = read_configurations(lab)
    assert [len(c.measured) for c in configurations] == [2, 1, 1]
    found = decide(configurations)["objectives"]["tpot.mean"]
    assert found["noise"] > 0
    assert found["decided"]["by"] == "2 s"


def test_what_is_missing_is_named(lab: Path, tmp_path: Path) -> None:
    shutil.rmtree(lab / "slow1.4" / "simulated")
    with pytest.raises(TraceError, match=r"slow1.4: no bundle simulated"):
        read_configurations(lab)
    shutil.rmtree(lab / "slow1.4")
    shutil.rmtree(lab / "slow1.8")
    with pytest.raises(TraceError, match="1 configurations"):
        read_configurations(lab)
    with pytest.raises(TraceError, match="no such directory"):
        read_configurations(tmp_path / "none")
