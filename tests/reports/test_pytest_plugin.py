"""The plugin in a pytest of its own, as a team would use it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from fake_bundles import fake_bundle, fake_pair

ROOT = Path(__file__).resolve().parents[2]
TEST = """
def test_accuracy(frontier_scorecard):
    card = frontier_scorecard("measured", "{simulated}", out="out")
    assert 0 < card.error("tpot") < 5
    card.check("base.json")


def test_what_was_not_compared(frontier_scorecard):
    frontier_scorecard("measured", "{simulated}").error("transfer")
"""


RUNS = {  # in this order, in one process: what they import takes longer than they do
    "no baseline": "-k accuracy test_gate.py",
    "baseline made": "-k accuracy --frontier-update-baselines test_gate.py",
    "held": "-k accuracy test_gate.py",
    "worse": "-k accuracy test_worse.py",
    "not compared": "-k not_compared test_gate.py",
}
PROCESS = """
import sys, pytest
for line in sys.argv[1:]:
    plugins = ["-p", "reports.pytest_plugin", "-p", "no:cacheprovider"]
    code = pytest.main([*plugins, "-qs", *line.split()])
    print(f"\\x1e{int(code)}\\x1e")
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lab")
    fake_pair(home)
    fake_bundle(home / "worse", seed=9, slower=1.3, warmups=4, kind="simulated")
    for name, simulated in (("gate", "simulated"), ("worse", "worse")):
        (home / f"test_{name}.py").write_text(TEST.format(simulated=simulated))
    return home


@pytest.fixture(scope="module")
def outcomes(lab: Path) -> dict[str, tuple[int, str]]:
    """Exit code and output of each run."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, *RUNS.values()],
        cwd=lab, capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    texts, codes = (done.stdout.split("\x1e")[k::2] for k in (0, 1))
    return {name: (int(code), text) for name, code, text in zip(RUNS, codes, texts, strict=False)}


def test_a_team_gates_in_its_own_tests(lab: Path, outcomes: dict[str, tuple[int, str]]) -> None:
    code, text = outcomes["no baseline"]
    assert code == 1
    assert "no baseline there; make one with --update-baseline" in text
    assert outcomes["baseline made"][0] == 0
    assert (lab / "base.json").is_file()
    assert (lab / "out" / "report.html").is_file()
    assert outcomes["held"][0] == 0
    code, text = outcomes["worse"]
    assert code == 1
    assert "regression: " in text
    assert "Traceback" not in text


def test_an_error_that_is_not_there_fails_the_test(
    outcomes: dict[str, tuple[int, str]],
) -> None:
    code, text = outcomes["not compared"]
    assert code == 1
    assert "transfer mean: not compared" in text


def test_the_entry_point_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"frontier": "reports.pytest_plugin"}


def test_the_example_workflow_uses_options_that_exist() -> None:
    from replay.cli import main

    file = ROOT / "reports" / "examples" / "github-workflow.yml"
    steps = yaml.safe_load(file.read_text())["jobs"]["gate"]["steps"]
    commands = " ".join(s.get("run", "") for s in steps).replace("\\\n", " ")
    for line in (part for part in commands.split("frontier ")[1:]):
        verb, *words = line.split()
        if verb not in main.commands:
            continue
        known = {o for p in main.commands[verb].params for o in p.opts}
        given = {w for w in words if w.startswith("--") and not w.startswith("--junitxml")}
        assert given <= known, (verb, given - known)
    assert {"replay", "validate", "check"} <= set(commands.split())
