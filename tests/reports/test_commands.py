"""``frontier validate`` and ``frontier check`` from the outside: files and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from fake_bundles import fake_bundle, fake_pair

from replay.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def here(tmp_path: Path) -> Path:
    fake_pair(tmp_path)
    return tmp_path


def test_validate_then_check(here: Path) -> None:
    first = run("validate", here / "measured", here / "simulated", "--out", here / "out")
    assert first.exit_code == 0, first.output
    assert "On average: TTFT" in first.output
    assert json.loads((here / "out" / "scorecard.json").read_text())["schema"] == 1
    base = here / "base.json"
    assert run("check", here / "out", "--baseline", base).exit_code == 2
    assert run("check", here / "out", "--baseline", base, "--update-baseline").exit_code == 0
    again = run("check", here / "out" / "scorecard.json", "--baseline", base)
    assert (again.exit_code, again.output) == (0, "pass: no regression in 16 statistics\n")
    fake_bundle(here / "worse", seed=9, slower=1.3, warmups=4, kind="simulated")
    run("validate", here / "measured", here / "worse", "--out", here / "out2")
    worse = run("check", here / "out2", "--baseline", base)
    assert worse.exit_code == 1
    assert worse.output.startswith("regression: ")
    assert len(worse.output.splitlines()) == 1
    assert len(run("check", here / "out2", "--baseline", base, "-v").output.splitlines()) > 5


def test_bars_decide_the_exit_code(here: Path) -> None:
    bars = here / "bars.yaml"
    for text, code in (("ttft: {mean: 0.5}", 0), ("ttft: {mean: 0.001}", 1), ("x: 1", 2)):
        bars.write_text(text)
        got = run("validate", here / "measured", here / "simulated", "--out", here / "o",
                  "--bars", bars)  # fmt: skip
        assert got.exit_code == code, got.output


def test_repeats_may_be_many(here: Path) -> None:
    for i in range(2):
        fake_bundle(here / f"r{i}", seed=40 + i, warmups=4)
    got = run("validate", here / "measured", here / "simulated", "--out", here / "o",
              "--repeats", here / "r0", "--repeats", here / "r1")  # fmt: skip
    assert got.exit_code == 0
    assert "(3 runs)" in got.output
    card = json.loads((here / "o" / "scorecard.json").read_text())
    assert card["metrics"]["ttft"]["mean"]["noise"] > 0


def test_ids_that_name_other_requests_are_said_first(here: Path) -> None:
    fake_bundle(here / "other", requests=90, warmups=4, kind="simulated")  # draws others
    same, other = (
        run("validate", here / "measured", here / name, "--out", here / "o").output
        for name in ("simulated", "other")
    )
    assert "Perhaps not one workload" not in same
    below = other[other.index("On average: ") :].splitlines()
    assert below[1].startswith("Perhaps not one workload: ")
    assert below[1].endswith(" of 90 pairs have other lengths on the two sides.")


def test_user_errors_are_lines_and_exit_2(here: Path) -> None:
    out = here / "o"
    same = run("validate", here / "measured", here / "simulated", "--out", out,
               "--repeats", here / "measured")  # fmt: skip
    assert same.exit_code == 2
    assert "the same run as" in same.output
    for name in ("measured", "simulated"):
        (here / name / "requests.parquet").write_bytes(b"no parquet")
    broken = run("validate", here / "measured", here / "simulated", "--out", out)
    assert broken.exit_code == 2
    faults = [line for line in broken.output.splitlines() if line.startswith("frontier: ")]
    assert len(faults) == 2  # both bundles at once
    assert run("validate", here / "measured", here / "none", "--out", out).exit_code == 2
    fake_pair(here / "again")
    pair = [here / "again" / name for name in ("measured", "simulated")]
    (here / "file").write_text("")
    blocked = run("validate", *pair, "--out", here / "file")
    assert blocked.exit_code == 2
