"""An expert-parallel deployment, simulated in the place of a measured one.

Step times of the shipped captures are fitted from CPU steps, which do not tell loads and links
apart. So the machine here is made up: operators of 100 us and more, experts of unequal load on
four ranks, a slow link between them. Its repeats differ as a drifting machine's do: the operators
of each run are a little slower or faster.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))
from test_parallel import engine, kernels

from replay.plan import load_step_time, make_plan
from replay.simulate import replay
from replay.swapped import swapped_step_times
from simulator.model import model_from_config
from traces.bundle import Bundle, write_bundle
from traces.synthesis import Recipe, synthesise
from validation.ladder import Simulator

GROUP = "expert-parallel"
REPEATS = 5
DRIFT = 0.02  # standard deviation of a run's operator times
SLOWER = 100  # than the table of ``test_parallel``
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 4, "head_dim": 16,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512,
    "intermediate_size": 128, "max_position_embeddings": 4096,
    "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 32,
}  # fmt: skip
ENGINE: dict[str, Any] = {
    "tensor_parallel_size": 4, "enable_expert_parallel": True, "max_num_seqs": 16,
    "max_num_batched_tokens": 256, "num_gpu_blocks": 2000, "async_scheduling": False,
    "enforce_eager": True,
}  # fmt: skip
DEPLOYMENT: dict[str, Any] = {
    "model": "model.json",
    "engine_version": "0.32.0",
    "clusters": [{"name": "main", "hardware": "h100_sxm", "engine": ENGINE}],
    "links": [{"from": "main", "to": "main", "bandwidth_gb_s": 0.04, "latency_us": 20}],
    "moe": {"expert_load": {"from": "zipf", "exponent": 1.2}},
}
RECIPE = Recipe(
    requests=240, rate_per_s=7.0, arrivals="poisson", prompt="lognormal:120,0.6,20,400",
    output="lognormal:40,0.5,8,100", prefixes=0, prefix_tokens=256, prefix_share=1.0, turns=None,
    think="lognormal:5,1,0.5,60", answer_s=1.0, block_tokens=16,
)  # fmt: skip


def evenly_loaded(raw: dict[str, Any]) -> dict[str, Any]:
    """The deployment with its expert loads made uniform."""
    return raw | {"moe": {"expert_load": "uniform"}}


def half_the_bandwidth(raw: dict[str, Any]) -> dict[str, Any]:
    """The deployment with the bandwidth of its link halved."""
    (link,) = raw["links"]
    return raw | {"links": [link | {"bandwidth_gb_s": link["bandwidth_gb_s"] / 2}]}


class ExpertWorld:
    """The machine under ``home``, its runs, and simulations of it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.home.mkdir()
        (self.home / "model.json").write_text(json.dumps(CONFIG))
        self._workload = synthesise(RECIPE, np.random.default_rng(1))
        table = kernels(model_from_config(CONFIG, "tiny"), engine(**ENGINE))
        at = table.column_names.index("duration_s")
        self._kernels = table.set_column(
            at, "duration_s", pc.multiply(table["duration_s"], float(SLOWER))
        )

    def measured(self) -> list[Bundle]:
        """The runs taken for measured ones."""
        drift = np.random.default_rng(2).normal(1.0, DRIFT, REPEATS)
        return [self._run(f"rep{i}", DEPLOYMENT, f, "measured") for i, f in enumerate(drift)]

    def simulated(self, raw: dict[str, Any]) -> tuple[Bundle, Simulator]:
        """A simulation of the deployment ``raw`` with the undrifted operators."""
        number = len([*self.home.glob("simulated-*.yaml")])
        bundle = self._run(f"simulated-{number}", raw, 1.0, "simulated")
        real, plan = (
            make_plan(self.home / name, operators=self.home / "profile-1")
            for name in ("rep0", bundle.path.name)
        )
        model, note = load_step_time(plan)
        swaps = swapped_step_times(self.home / "rep0", real, plan)
        configs = real.scheduler_config(), plan.scheduler_config()
        return bundle, Simulator(*configs, model, note["profile"], swaps)

    def _run(self, name: str, raw: dict[str, Any], drift: float, kind: str) -> Bundle:
        profile = self.home / f"profile-{drift:g}"
        profile.mkdir(exist_ok=True)
        file = profile / "kernels.parquet"
        if not file.is_file():
            at = self._kernels.column_names.index("duration_s")
            times = pc.multiply(self._kernels["duration_s"], drift)
            pq.write_table(self._kernels.set_column(at, "duration_s", times), file)
        (self.home / f"{name}.yaml").write_text(yaml.safe_dump(raw))
        plan = make_plan(self.home / f"{name}.yaml", operators=profile)
        manifest, tables = replay(self._workload, plan, record=["steps", "step_requests"])
        manifest = replace(
            manifest, kind=kind, deployment=manifest.deployment | {"operators": None}
        )
        manifest.deployment = {k: v for k, v in manifest.deployment.items() if v is not None}
        bundle = write_bundle(self.home / name, manifest, tables)
        (bundle.path / "model.json").write_text(json.dumps(CONFIG))
        return bundle
