"""``replay`` of an attention and an FFN cluster, from a file of measured kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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


PREFILL = """
  - {name: p, role: prefill, hardware: h100_sxm, engine: {max_num_seqs: 16,
     max_num_batched_tokens: 256, enforce_eager: true, num_gpu_blocks: 400}}
"""
HANDED = "links:\n  - {from: p, to: %s, bandwidth_gb_s: 20, latency_us: 5}\n"
CLUSTERS = ("clusters:\n", "clusters:" + PREFILL)


def with_prefill(home: Path) -> Path:
    return deployment(home, APART, CLUSTERS, ("links:\n", HANDED % "a"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_prefill_attention_and_ffn(world: Callable[[dict[str, Any]], Path], ranks: int) -> None:
    home = world(MOE)
    path = with_prefill(home)
    text = path.read_text().replace(
        "role: attention, hardware: h100_sxm, engine: {",
        f"role: attention, hardware: h100_sxm, engine: {{data_parallel_size: {ranks}, ",
    )
    path.write_text(text + "pipeline: {policy: ping_pong, micro_batches: auto}\n")
    run_replay(home / "w.csv", path, home / "out", record="steps")
    bundle = read_bundle(home / "out")
    assert set(bundle.requests["status"].to_pylist()) == {"finished"}
    steps = bundle.table("steps").to_pandas()
    assert set(steps["cluster"]) == {"p", "a"}
    decoding = steps[steps["cluster"] == "a"]
    assert set(decoding["replica"]) == set(range(ranks))
    # the last token of each prompt is computed again, as vLLM does
    assert decoding["prefill_tokens"].sum() == 20
    # attention ranks step together
    ends = decoding.groupby("step")["end_s"].nunique()
    assert set(ends) == {1}
    assert len(bundle.table("transfers")) == 20
    notes = bundle.manifest.notes["operators"]["clusters"]
    assert set(notes["a"]["kernels_of"]) == {"a", "f"}


def test_free_links_hand_over_as_between_prefill_and_decode(
    world: Callable[[dict[str, Any]], Path],
) -> None:
    """P + A + F with free links in turn, against P + D: every request at the same times."""
    home = world(DENSE)
    decode_role = ("{name: a, hardware", "{name: a, role: decode, hardware")
    links = ("num_gpu_blocks: 400}}]", "num_gpu_blocks: 400}}]\n" + HANDED % "a")
    apart = with_prefill(home)
    apart.write_text(apart.read_text().replace(*FREE))
    run_replay(home / "w.csv", apart, home / "paf")
    together = deployment(
        home, COLOCATED, decode_role, links, ("clusters: [{name: a, role", "clusters:" + PREFILL +
        "  - {name: a, role"), ("num_gpu_blocks: 400}}]\n", "num_gpu_blocks: 400}}\n"),
    )  # fmt: skip
    run_replay(home / "w.csv", together, home / "pd")
    one, other = (read_bundle(home / name).requests for name in ("paf", "pd"))
    for name in ("first_token_s", "finished_s", "transfer_end_s", "decode_queued_s"):
        assert one[name].to_numpy() == pytest.approx(other[name].to_numpy(), rel=1e-6)


def test_drawn_loads_make_a_straggler(world: Callable[[dict[str, Any]], Path]) -> None:
    home = world(MOE)
    ep = ("{name: f, role: ffn, hardware: h100_sxm, engine: {",
          "{name: f, role: ffn, hardware: h100_sxm, engine: {data_parallel_size: 4, "
          "enable_expert_parallel: true, ")  # fmt: skip
    zipf = "moe: {expert_load: {from: zipf, exponent: 1.2}}\n"
    path = deployment(home, APART, ep)
    even = seconds(path, 200)
    path.write_text(path.read_text() + zipf)
    model, note = load_step_time(make_plan(path))
    drawn = [model.times(replace(decode(200), draw=d)).alone / 1e12 for d in range(8)]
    assert len(set(drawn)) == 8  # each draw has its own loads
    assert min(drawn) > even
    assert note["straggler"]["f"] > 1.1
    assert not make_plan(path).ignored
    # experts over two clusters: the same law, each cluster's ranks by their own experts
    far = """
  - {name: g, role: ffn, hardware: h100_sxm, engine: {data_parallel_size: 2,
     enable_expert_parallel: true, max_num_seqs: 16, max_num_batched_tokens: 256}}
links:
  - {from: a, to: g, bandwidth_gb_s: 50}
  - {from: g, to: a, bandwidth_gb_s: 50}
"""
    ranges = "moe: {placement: {f: [[0, 15]], g: [[16, 31]]}, expert_load: "
    spread = deployment(home, APART, ep, ("links:\n", far.lstrip("\n")))
    spread.write_text(spread.read_text() + ranges + "{from: zipf, exponent: 1.2}}\n")
    assert set(load_step_time(make_plan(spread))[1]["straggler"]) == {"f", "g"}


def test_weights_that_do_not_fit_the_ffn_ranks_are_refused(
    world: Callable[[dict[str, Any]], Path],
) -> None:
    wide = MOE | {"moe_intermediate_size": 2_000_000}
    home = world(MOE)
    (home / "model.json").write_text(json.dumps(wide))
    # 4 layers x 32 experts x 3 x 64 x 2,000,000 weights of 2 bytes, and 551 MiB; of 256 tokens,
    # or half of them at a time, 4 experts' gate, up and product, 2,000,000 numbers each
    for policy, needed in (("none", "111.2"), ("two_batch", "105.0")):
        path = deployment(home, APART + f"pipeline: {{policy: {policy}, micro_batches: auto}}\n")
        with pytest.raises(ConfigError) as error:
            make_plan(path)
        assert str(error.value).startswith(
            f"clusters[f].engine: the weights do not fit: {needed} GB a rank with activations and "
            "the runtime, "
        )
        assert str(error.value).endswith(" GB missing")


def test_stages_of_chosen_steps_are_recorded(
    world: Callable[[dict[str, Any]], Path],
) -> None:
    """Two attention ranks: the spans are the slowest one's and end with the step."""
    home = world(MOE)
    path = with_prefill(home)
    text = path.read_text().replace(
        "role: attention, hardware: h100_sxm, engine: {",
        "role: attention, hardware: h100_sxm, engine: {data_parallel_size: 2, ",
    )
    path.write_text(text + "pipeline: {policy: ping_pong, micro_batches: 2}\n")
    run_replay(home / "w.csv", path, home / "out", record="spans", span_steps=(20, 22))
    bundle = read_bundle(home / "out")
    assert "steps" not in bundle  # not asked for
    spans = bundle.table("spans").to_pandas()
    assert set(spans["step"]) == {20, 21, 22}
    assert set(zip(spans["cluster"], spans["stage"], strict=True)) == {
        ("a", "attention"), ("a", "a2f"), ("f", "ffn"), ("f", "f2a")
    }  # fmt: skip
    run_replay(home / "w.csv", path, home / "whole", record="steps")
    steps = read_bundle(home / "whole").table("steps").to_pandas()
    for number, mine in spans.groupby("step"):
        (step,) = (
            steps[(steps["cluster"] == "a") & (steps["step"] == number)]
            [["end_s", "forward_s"]].drop_duplicates().to_numpy().tolist()
        )  # fmt: skip
        assert mine["end_s"].max() == pytest.approx(step[0], rel=1e-12)
        assert mine["start_s"].min() >= step[0] - step[1] - 1e-12
        assert set(mine["micro_batch"]) == {0, 1}


def test_only_pipelines_have_stages(world: Callable[[dict[str, Any]], Path]) -> None:
    home = world(DENSE)
    path = deployment(home, COLOCATED)
    with pytest.raises(ConfigError, match="--record: spans are the stages of attention and FFN"):
        run_replay(home / "w.csv", path, home / "out", record="spans")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  - {from: f, to: a, bandwidth_gb_s: 50, latency_us: 5}\n", "", "one from f to a"),
        ("enforce_eager: true}}\nlinks", "num_gpu_blocks: 9}}\nlinks", "holds no KV cache"),
        ("links:", "moe: {placement: {f: [[0, 30]]}}\nlinks:", "expert 31 is placed in no"),
        ("operators: profile\n", "", "no profile given"),
        ("role: ffn", "role: decode", "one attention and some ffn clusters"),
        (*CLUSTERS, "one from p to a is needed, got 0"),
    ],
)
def test_refused(world: Callable[[dict[str, Any]], Path], old: str, new: str, said: str) -> None:
    path = deployment(world(MOE), APART, (old, new))
    with pytest.raises(ConfigError, match=said) as error:
        run_replay(path.parent / "w.csv", path, path.parent / "out")
    assert "\n" not in str(error.value)
