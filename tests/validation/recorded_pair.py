"""A captured prefill/decode pair held against our schedulers under its own times."""

from __future__ import annotations

from pathlib import Path

from replay.plan import make_plan
from simulator.disaggregation.setup import Side, demands
from simulator.recorded import Agreement, replay_recorded_pair
from simulator.step_time.compiled import CompiledStepTime
from traces.bundle import read_bundle


def agreements(path: Path) -> dict[str, Agreement]:
    """How far batches and free blocks of each side are the recorded ones, by cluster."""
    bundle, plan = read_bundle(path), make_plan(path)
    sides = [
        Side(part.cluster.name, 1, part.scheduler_config(), CompiledStepTime([]), "round_robin")
        for part in (plan.side("prefill"), plan.side("decode"))
    ]
    asked = demands(bundle.requests, sides[0], sides[1], bundle.manifest.hash_block_tokens)
    first, last = ([demand.make(i) for i in range(len(demand))] for demand in asked)
    return replay_recorded_pair(bundle, (first, last), (sides[0].config, sides[1].config))
