"""Parts of a measured deployment in the place of a simulated one's, for the ladder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from expert_world import CONFIG, DEPLOYMENT, ExpertWorld, evenly_loaded, half_the_bandwidth

from simulator.step_time.base import BatchShape
from traces.bundle import read_bundle, write_table
from validation.ladder import Simulator, build_ladder

BATCH = BatchShape(tokens=8, rows=8, sampled=8, decodes=8, decode_context=800)


@pytest.fixture
def world(tmp_path: Path) -> ExpertWorld:
    made = ExpertWorld(tmp_path / "world")
    made.measured()
    return made


def forward(simulator: Simulator, name: str) -> int:
    """The forward time with which a term predicts a batch."""
    return dict(simulator.stages())[name].times(BATCH).alone


def test_what_is_alike_is_not_swapped(world: ExpertWorld) -> None:
    assert world.simulated(DEPLOYMENT)[1].swaps == ()


@pytest.mark.parametrize(
    ("name", "edit"), [("expert_loads", evenly_loaded), ("links", half_the_bandwidth)]
)
def test_the_measured_run_s_part_comes_first(
    world: ExpertWorld, name: str, edit: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    right, wrong = world.simulated(DEPLOYMENT)[1], world.simulated(edit(DEPLOYMENT))[1]
    assert [n for n, _ in wrong.swaps] == [name]
    assert forward(wrong, "operators") == forward(right, "operators")
    assert forward(wrong, name) == wrong.model.times(BATCH).alone != forward(right, "operators")


def test_both_are_swapped_one_after_the_other(world: ExpertWorld) -> None:
    wrong = world.simulated(half_the_bandwidth(evenly_loaded(DEPLOYMENT)))[1]
    even = world.simulated(evenly_loaded(DEPLOYMENT))[1]
    assert [n for n, _ in wrong.stages()] == ["operators", "expert_loads", "links"]
    assert forward(wrong, "expert_loads") == even.model.times(BATCH).alone


def test_recorded_expert_loads_stand_above_those_the_deployment_names(world: ExpertWorld) -> None:
    """All tokens to the same four experts, so few are awake: it is the loads that save time."""
    layers, experts = CONFIG["num_hidden_layers"], CONFIG["num_experts"]
    counts = np.zeros(experts, int)
    counts[: CONFIG["num_experts_per_tok"]] = 64
    rows = [
        {"cluster": "main", "replica": 0, "step": step, "micro_batch": 0, "layer": layer,
         "expert_tokens": counts.tolist()}
        for step in range(40) for layer in range(layers)
    ]  # fmt: skip
    write_table(world.home / "rep0", "experts", pa.Table.from_pylist(rows))
    bundle, simulator = world.simulated(DEPLOYMENT)
    assert [n for n, _ in simulator.swaps] == ["expert_loads"]
    recorded, named = (forward(simulator, n) for n in ("operators", "expert_loads"))
    assert recorded < 0.97 * named
    ladder = build_ladder(read_bundle(world.home / "rep0"), bundle, simulator)
    found = {t["name"]: t["tpot"] for t in ladder["terms"]}
    error = ladder["rungs"][-1]["tpot"] - ladder["rungs"][0]["tpot"]
    assert abs(found["expert_loads"]) > 5 * abs(error)
    assert found["operators"] + found["expert_loads"] == pytest.approx(error, abs=1e-9)
