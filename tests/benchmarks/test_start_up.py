"""What a start costs: the help, a replay with and without machine code at hand, a step time."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_workloads import full_tables
from click.testing import Result

from simulator.step_time.base import BatchShape

pytestmark = pytest.mark.bench
HOME = Path(__file__).resolve().parents[2]
SAMPLES = HOME / "traces" / "samples"
HELP_S, WARM_S, COLD_S = 0.3, 1.0, 5.0  # wall, on two cores
CALL_US = 3.0


# the line, with machine code kept in one folder only
KEPT_IN = """
import sys
from pathlib import Path
from simulator.engine import build
place = Path(sys.argv.pop(1))
build._places = lambda: iter([place])
from replay.cli import main
main()
"""


def took(how: list[str], *arguments: str | Path) -> tuple[float, float]:
    """Wall and CPU seconds of a command of the line."""
    before, begun_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, *how, *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, cwd=HOME)
    wall_s = time.perf_counter() - begun_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, sum(after[:2]) - sum(before[:2])


def test_start_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], frontier: Callable[..., Result]
) -> None:
    profile = tmp_path / "profile"
    assert frontier("fit", SAMPLES / "dense-low" / "rep1", "--out", profile).exit_code == 0
    replay = ["replay", SAMPLES / "dense-high" / "rep1", "--operators", profile, "--out"]
    cold, warm, shown = (
        [took(*command(k)) for k in range(3)]
        for command in (
            lambda k: (["-c", KEPT_IN], tmp_path / f"code{k}", *replay, tmp_path / f"cold{k}"),
            lambda k: (["-c", KEPT_IN], tmp_path / "code0", *replay, tmp_path / f"warm{k}"),
            lambda k: (["-m", "replay.cli"], "-h"),
        )
    )
    best = {"-h": min(shown), "replay, warm": min(warm), "replay, cold": min(cold)}
    with capsys.disabled():
        for name, (wall_s, cpu_s) in best.items():
            print(f"\n{name}: {wall_s:.2f} s, {cpu_s:.2f} CPU s", end="")
        print()
    for (wall_s, _), bar_s in zip(best.values(), (HELP_S, WARM_S, COLD_S), strict=True):
        assert wall_s < bar_s


def test_a_step_time_from_python(capsys: pytest.CaptureFixture[str]) -> None:
    model, calls = full_tables(), 20_000
    shape = BatchShape(tokens=600, sampled=90, decodes=89, decode_context=60_000,
                       prefill_tokens=511, prefill_pairs=130_816)  # fmt: skip
    took = {}
    for name, call in {
        "from Python": lambda: model.times(shape),
        "without its arguments and answer": lambda: model._evaluate(model._argument),
    }.items():
        runs = []
        for _ in range(5):
            begun_s = time.process_time()
            for _ in range(calls):
                call()
            runs.append((time.process_time() - begun_s) / calls * 1e6)
        took[name] = min(runs)
    with capsys.disabled():
        print("\ntwelve tables: " + ", ".join(f"{us:.2f} us {name}" for name, us in took.items()))
    assert took["from Python"] < CALL_US
