"""The page on attention and FFN apart: its scripts, and its numbers where the tables are."""

from __future__ import annotations

import importlib.util
import io
import os
import shlex
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner
from test_tutorial import commands, holds

from replay.cli import main
from reports.svg import lanes_chart, line_chart
from reports.timeline import write_timeline
from traces.bundle import read_bundle
from traces.samples import HOME

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "reports" / "examples" / "attention-ffn"
PROFILE = "FRONTIER_H200_KERNELS"  # a profile of aiconfigurator's H200 tables
SVG = "{http://www.w3.org/2000/svg}"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"page_{name}", PAGE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(words: list[str]) -> str:
    """What a command of the page prints."""
    if words[0] == "frontier":
        result = CliRunner().invoke(main, words[1:])
        assert result.exit_code == 0, result.output
        return result.stdout
    assert words[0] == "python"
    said, before = io.StringIO(), sys.argv
    sys.argv = words[1:]
    try:
        with redirect_stdout(said):
            script(Path(words[1]).stem).main()
    finally:
        sys.argv = before
    return said.getvalue()


@pytest.mark.long
@pytest.mark.skipif(PROFILE not in os.environ, reason=f"{PROFILE} names no profile")
def test_every_number_is_a_command_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("traces", "reports"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    steps = commands((PAGE / "README.md").read_text())
    assert len(steps) >= 6
    for command, said in steps:
        words = shlex.split(command)
        if words[1] == "import-kernels":  # the tables as they were imported before
            shutil.copytree(os.environ[PROFILE], words[words.index("--out") + 1])
            continue
        printed = [line.rstrip() for line in run(words).splitlines()]
        assert holds(said, printed), f"{command}\n" + "\n".join(printed)


@pytest.mark.parametrize("name", ["colocated", "pd", "af", "paf"])
def test_deployments_have_32_devices_and_fit(name: str) -> None:
    from replay.plan import make_plan
    from replay.whatif.evaluate import devices

    plan = make_plan(PAGE / f"{name}.yaml")
    assert sum(devices(cluster) for cluster in plan.deployment.clusters) == 32
    assert not plan.ignored


def test_crossing_points() -> None:
    crossing = script("charts").crossing
    xs = [1.0, 10.0, 100.0]
    assert crossing(xs, [4.0, 2.0, 1.0], [2.0, 2.0, 2.0]) == pytest.approx(10.0)
    assert crossing(xs, [4.0, 4.0, 1.0], [2.0, 2.0, 2.0]) == pytest.approx(10**1.5)
    assert crossing(xs, [4.0, 3.0, 3.0], [2.0, 2.0, 2.0]) is None
    assert crossing(xs, [1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) == 1.0


def test_pictures_of_a_measured_step(tmp_path: Path) -> None:
    """The shipped testbed sample: as many bars as stages, none longer than the step."""
    path = HOME / "attention-ffn" / "launch1" / "repeat0" / "m3-b192"
    write_timeline([path], tmp_path / "trace.json")
    spans = read_bundle(path).table("spans").to_pandas()
    step = int(spans["step"].max())
    out = tmp_path / "stages.svg"
    run(["python", "pictures.py", str(tmp_path / "trace.json"), "--step", str(step),
         "--out", str(out)])  # fmt: skip
    bars = [r for r in ElementTree.parse(out).iter(f"{SVG}rect") if r.get("height") == "16"]
    assert len(bars) == (spans["step"] == step).sum()
    assert all(0 <= float(bar.get("x", "")) <= 960 for bar in bars)


def test_charts_are_svg_with_every_point() -> None:
    chart = ElementTree.fromstring(
        line_chart("a < b", "x", "y", {"one": [(1, 2), (2, 3)], "two": [(1, 1), (2, 5)]})
    )
    assert len(list(chart.iter(f"{SVG}circle"))) == 4
    assert "a < b" in [text.text for text in chart.iter(f"{SVG}text")]
    lanes = ElementTree.fromstring(lanes_chart("t", {"r": [(0, 1, "ffn"), (1, 3, "f2a")]}))
    assert len([r for r in lanes.iter(f"{SVG}rect") if r.get("height") == "16"]) == 2
