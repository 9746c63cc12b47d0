"""``frontier noise`` and ``frontier compare`` from the outside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_bundles import fake_bundle, fake_pair

from replay.cli import main

H100 = Path(__file__).parents[3] / "shared" / "data" / "serving" / "h100-qwen3-14b-vllm0.23"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_groups_of_bundles(tmp_path: Path) -> None:
    for group, slower in (("low", 1.0), ("high", 1.5)):
        for i in range(2):
            fake_bundle(tmp_path / group / f"rep{i}", seed=i, slower=slower)
    (tmp_path / "low" / "notes.txt").write_text("not a run")
    out = tmp_path / "noise.json"
    done = run("noise", tmp_path / "low", tmp_path / "high", "--out", out)
    assert done.exit_code == 0, done.output
    assert "2 runs, 120 requests in all of them" in " ".join(done.output.split())
    groups = json.loads(out.read_text())["groups"]
    largest = [g["metrics"]["ttft"]["mean"]["largest"] for g in groups.values()]
    assert f"{max(largest) * 100:.1f} %" in done.output.split("mean TTFT:")[1].splitlines()[0]
    assert "rep0" not in run("noise", "-q", tmp_path / "low").output
    assert run("noise", tmp_path / "low" / "rep0").exit_code == 2


@pytest.mark.skipif(not H100.is_dir(), reason="no shared data")
def test_two_h100s_at_equal_arrivals_give_the_known_floor() -> None:
    """Patched and vanilla vLLM on two machines: mean TPOT 0.1-1.7 %, mean TTFT 0.4-2 %."""
    done = run("noise", "-q", *sorted(H100.glob("agg_*")))
    assert done.exit_code == 0, done.output
    print(f"\n{done.output}")
    for label, low, high in (("TTFT", 0.4, 2.0), ("TPOT", 0.1, 1.7)):
        said = rf"mean {label}: two runs differ by ([\d.]+) % to ([\d.]+) %"
        found = re.search(said, done.output)
        assert found
        assert low <= float(found[1]) <= float(found[2]) <= high


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """Scorecards of a simulation before and after it was made better."""
    fake_pair(tmp_path)
    for name, slower in (("before", 1.2), ("after", 1.05)):
        simulated = fake_bundle(tmp_path / f"s-{name}", seed=9, slower=slower, warmups=4,
                                kind="simulated")  # fmt: skip
        run("validate", tmp_path / "measured", simulated.path, "--out", tmp_path / name)
    return tmp_path


def test_before_and_after_side_by_side(cards: Path) -> None:
    out = cards / "table.md"
    done = run("compare", cards / "before", cards / "after" / "scorecard.json", "--out", out)
    assert done.exit_code == 0, done.output
    rows = [[c.strip().replace("\\", "") for c in line.split("|")[1:-1]]
            for line in out.read_text().splitlines()]  # fmt: skip
    assert rows[0] == ["error of", "", "before", "after", "last / first", "noise"]
    tpot = next(row for row in rows if row[:2] == ["TPOT", "mean"])
    errors = [
        json.loads((cards / n / "scorecard.json").read_text())["metrics"]["tpot"]["mean"]["error"]
        for n in ("before", "after")
    ]
    assert tpot[2] == f"+{errors[0] * 100:.1f} %"
    assert tpot[4] == f"{errors[1] / errors[0]:.2f}\N{MULTIPLICATION SIGN}"
    assert "last / first" in done.output


def test_scorecards_of_other_workloads_are_not_compared(cards: Path, tmp_path: Path) -> None:
    other = [fake_bundle(tmp_path / f"o{i}", seed=i, requests=60, kind=kind)
             for i, kind in enumerate(("measured", "simulated"))]  # fmt: skip
    run("validate", other[0].path, other[1].path, "--out", tmp_path / "other")
    done = run("compare", cards / "before", tmp_path / "other")
    assert done.exit_code == 2
    assert "another workload than" in done.output
    assert run("compare", cards / "nowhere").exit_code == 2
