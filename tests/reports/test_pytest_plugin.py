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


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    fake_pair(tmp_path)
    fake_bundle(tmp_path / "worse", seed=9, slower=1.3, warmups=4, kind="simulated")
    return tmp_path


def run_pytest(lab: Path, *arguments: str, simulated: str = "simulated") -> tuple[int, str]:
    (lab / "test_gate.py").write_text(TEST.format(simulated=simulated))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "reports.pytest_plugin", "-p", "no:cacheprovider",
         "-q", *arguments, "test_gate.py"],
        cwd=lab, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_team_gates_in_its_own_tests(lab: Path) -> None:
    code, text = run_pytest(lab, "-k", "accuracy")
    assert code == 1
    assert "no baseline there; make one with --update-baseline" in text
    assert run_pytest(lab, "-k", "accuracy", "--frontier-update-baselines")[0] == 0
    assert (lab / "base.json").is_file()
    assert (lab / "out" / "report.html").is_file()
    assert run_pytest(lab, "-k", "accuracy")[0] == 0
    code, text = run_pytest(lab, "-k", "accuracy", simulated="worse")
    assert code == 1
    assert "regression: " in text
    assert "Traceback" not in text


def test_an_error_that_is_not_there_fails_the_test(lab: Path) -> None:
    code, text = run_pytest(lab, "-k", "not_compared")
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
