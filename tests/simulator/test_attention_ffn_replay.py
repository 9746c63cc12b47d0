"""``replay`` of an attention and an FFN cluster, from a file of measured kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_parallel import decode, engine, kernels

from replay.plan import load_step_time, make_plan
from replay.simulate import run_replay
from simulator.model import model_from_config
from traces.bundle import read_bundle
from traces.errors import ConfigError

DENSE: dict[str, Any] = {
    "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 4, "head_dim": 16,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512,
    "intermediate_size": 128, "max_position_embeddings": 4096,
}  # fmt: skip
MOE = DENSE | {
    "model_type": "qwen3_moe", "num_experts": 32, "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
}  # fmt: skip
COLOCATED = """
model: model.json
engine_version: 0.32.0
operators: profile
clusters: [{name: a, hardware: h100_sxm, engine: {
  max_num_seqs: 16, max_num_batched_tokens: 256, enforce_eager: true, num_gpu_blocks: 400}}]
"""
APART = """
model: model.json
engine_version: 0.32.0
operators: profile
clusters:
  - {name: a, role: attention, hardware: h100_sxm, engine: {max_num_seqs: 16,
     max_num_batched_tokens: 256, enforce_eager: true, num_gpu_blocks: 400}}
  - {name: f, role: ffn, hardware: h100_sxm, engine: {max_num_seqs: 16,
     max_num_batched_tokens: 256, enforce_eager: true}}
links:
  - {from: a, to: f, bandwidth_gb_s: 50, latency_us: 5}
  - {from: f, to: a, bandwidth_gb_s: 50, latency_us: 5}
"""
FREE = ("bandwidth_gb_s: 50, latency_us: 5", "bandwidth_gb_s: 1.0e+12")


@pytest.fixture
def world(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def make(config: dict[str, Any]) -> Path:
        (tmp_path / "model.json").write_text(json.dumps(config))
        (tmp_path / "profile").mkdir(exist_ok=True)
        table = kernels(model_from_config(config, "tiny"), engine())
        pq.write_table(table, tmp_path / "profile/kernels.parquet")
        lines = ["arrived_at,num_prefill_tokens,num_decode_tokens"]
        lines += [f"{i * 1e-4:.4f},{20 + 7 * i},{5 + i}" for i in range(20)]
        (tmp_path / "w.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make


def deployment(home: Path, text: str, *changes: tuple[str, str]) -> Path:
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (home / "d.yaml").write_text(text)
    return home / "d.yaml"


def seconds(path: Path, tokens: int) -> float:
    return load_step_time(make_plan(path))[0].times(decode(tokens)).alone / 1e12


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
def test_replay(world: Callable[[dict[str, Any]], Path], config: dict[str, Any]) -> None:
    home = world(config)
    path = deployment(home, APART + "pipeline: {policy: ping_pong, micro_batches: 2}\n")
    run_replay(home / "w.csv", path, home / "out", record="steps")
    bundle = read_bundle(home / "out")
    assert set(bundle.requests["status"].to_pylist()) == {"finished"}
    assert set(bundle.table("steps")["cluster"].to_pylist()) == {"a"}
    assert not bundle.manifest.ignored
    assert set(bundle.manifest.notes["operators"]["kernels_of"]) == {"a", "f"}


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "moe"])
@pytest.mark.parametrize("tokens", [1, 16])
def test_free_links_in_turn_are_the_colocated_step(
    world: Callable[[dict[str, Any]], Path], config: dict[str, Any], tokens: int
) -> None:
    home = world(config)
    together = seconds(deployment(home, COLOCATED), tokens)
    free = seconds(deployment(home, APART, FREE), tokens)
    wired = seconds(deployment(home, APART), tokens)
    assert free == pytest.approx(together, rel=1e-6)
    wire = 4 * tokens * 64 * 2 / 50e9 * 2 + 4 * 10e-6  # 4 layers, there and back
    choices = 4 * tokens * 4 * 8 / 50e9 * ("num_experts" in config)
    assert wired - free == pytest.approx(wire + choices, rel=1e-4)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  - {from: f, to: a, bandwidth_gb_s: 50, latency_us: 5}\n", "", "one from f to a"),
        ("enforce_eager: true}}\nlinks", "num_gpu_blocks: 9}}\nlinks", "holds no KV cache"),
        ("links:", "moe: {placement: {f: [[0, 30]]}}\nlinks:", "expert 31 is placed in no"),
        ("operators: profile\n", "", "no profile given"),
        ("role: ffn", "role: decode", "one attention and some ffn clusters"),
    ],
)
def test_refused(world: Callable[[dict[str, Any]], Path], old: str, new: str, said: str) -> None:
    path = deployment(world(MOE), APART, (old, new))
    with pytest.raises(ConfigError, match=said) as error:
        load_step_time(make_plan(path))
    assert "\n" not in str(error.value)
