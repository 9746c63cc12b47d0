"""A foreign package under one of the five names is reported by name, whatever it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import replay
from replay.startup import PACKAGES, check_packages

HOME = Path(replay.__file__).resolve().parent.parent
# as from a wheel: the folder that holds the packages is on the path, no import hook finds them
RUN = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.argv = ["frontier", "replay", "-h"]
from replay.cli import main
main()
"""


def frontier(foreign: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(foreign), str(HOME)])
    return subprocess.run(
        [sys.executable, "-P", "-c", RUN], env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=120, cwd=foreign,
    )  # fmt: skip


def test_nothing_foreign_nothing_said(tmp_path: Path) -> None:
    check_packages()
    done = frontier(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["simulator", "validation", "reports", "traces"])
def test_a_foreign_package_is_named(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / name / "__init__.py"
    foreign.parent.mkdir()
    foreign.touch()
    done = frontier(tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"frontier: package {name!r} is imported from {foreign}, not from {HOME / name}: "
        "another distribution or folder on PYTHONPATH shadows it; remove it or change directory\n"
    )


def test_no_dependency_ships_one_of_the_names() -> None:
    owners = packages_distributions()
    for name in PACKAGES:
        assert set(owners.get(name, ["frontier-replay"])) == {"frontier-replay"}
