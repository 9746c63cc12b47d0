"""Deployments with attention and FFN apart: what is priced, sent and refused."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from simulator.deployment import SHIPPED, Cluster, Engine, Link, parse_deployment
from simulator.model import ModelSpec, load_model
from simulator.pipeline import create_strategy, idle_times
from simulator.pipeline.cross_cluster import cluster_parts, cluster_shares, experts_held
from simulator.pipeline.roles import attention_ffn, attention_part
from simulator.step_time.attention_ffn import attention_ffn_step_time, split_of
from simulator.step_time.attention_grid import AttentionGrid
from simulator.step_time.base import BatchShape
from simulator.step_time.layers import SAMPLED, Call, calls
from simulator.step_time.prices import Prices
from simulator.step_time.split import AttentionSide, FFNSide, Split
from simulator.weights import parameters
from traces.errors import ConfigError

PS = 10**12
Floats = npt.NDArray[np.float64]
FREE = {"bandwidth_gb_s": 1e15}
ENGINE = {"max_num_batched_tokens": 256, "max_num_seqs": 256, "enforce_eager": True}


@dataclass
class MadeUpPrices:
    """Every operator has a price of its own, by its shape; it grows with the tokens."""

    speed: float = 1.0
    estimated: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[Call, Floats]] = field(default_factory=list)

    def seconds(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        self.asked.append((call, rows))
        width = 1.0 + sum(call.shape.values()) % 97
        return (1e-6 + rows * 1e-9 * width) / self.speed, rows > 1e6


def grid() -> AttentionGrid:
    """1 ms for 512 decodes of 9,000 tokens, in proportion to both."""
    decodes, mean = np.array([0.0, 1.0, 512.0]), np.array([0.0, 100.0, 9e3])
    axes = (np.array([0.0, 512.0]), np.array([0.0, 1.0]), decodes, mean)
    line = 1e-3 * decodes[:, None] / 512 * mean / 9e3
    seconds = np.broadcast_to(line, (2, 2, 3, 3)).copy()
    return AttentionGrid(axes, seconds, 1.0, np.zeros((2, 3, 3)), np.inf)


def model(name: str) -> ModelSpec:
    return load_model(SHIPPED / "traces" / "models" / f"{name}.json")


def decodes(n: int, context: int = 500) -> BatchShape:
    return BatchShape(
        tokens=n, rows=n, sampled=n, decodes=n, decode_context=n * context,
        decode_context_sq=n * context * context, decode_context_max=context,
    )  # fmt: skip


def content(
    policy: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A deployment of one attention and one FFN cluster, changed here and there."""
    return {
        "model": "m.json",
        "clusters": [
            {"name": "a", "role": "attention", "engine": ENGINE},
            {"name": "f", "role": "ffn", "engine": ENGINE | (ffn or {})},
        ],
        "links": [{"from": "a", "to": "f", **FREE}, {"from": "f", "to": "a", **FREE}],
        "pipeline": policy or {},
    } | changes  # fmt: skip


def made(
    described: dict[str, Any], spec: ModelSpec, speeds: tuple[float, ...] = (1.0, 1.0)
) -> Split:
    clusters = attention_ffn(parse_deployment(described, "d.yaml"), spec)
    prices = [cast(Prices, MadeUpPrices(speed)) for speed in speeds]
    grids = [grid() for _ in dict.fromkeys(spec.windows)]
    side = AttentionSide(clusters.attention, prices[0], grids)
    return split_of(clusters, spec, side, prices[1:])


class FewLogitsMeasured(MadeUpPrices):
    """Of lm_head, 8 rows at most were measured."""

    def seconds(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        found, outside = super().seconds(call, rows)
        return found, outside | ((call.layer == "lm_head") & (rows > 8))


def test_a_step_is_extrapolated_by_what_its_micro_batches_sample() -> None:
    spec, described = model("qwen3-30b-a3b"), content({"policy": "two_batch"})
    split = made(described, spec)
    split.attention.prices = cast(Prices, FewLogitsMeasured())
    step_time, notes = attention_ffn_step_time(split)
    assert (notes["measured_to_sampled"], notes["measured_to_tokens"]) == (8, 256)
    for n, extrapolated in ((16, 0), (17, 1)):  # the larger half of 17 is 9
        step_time.times(decodes(n))
        assert step_time.coverage()["extrapolated"] == extrapolated
    step_time.times(replace(decodes(17), sampled=16))
    assert step_time.coverage()["extrapolated"] == 1


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "qwen3-30b-a3b", "deepseek-v2-lite", "gpt-oss-20b"]
)
def test_one_device_and_free_links_cost_what_a_colocated_step_does(name: str) -> None:
    spec, engine = model(name), Engine(**ENGINE)
    split = made(content(), spec)
    split.one_device = True
    step_time, notes = attention_ffn_step_time(split)
    assert notes["measured_to_tokens"] == 256
    for n in (1, 37, 256):
        whole = spec.layers * 1e-3 * n / 512 * 500 / 9e3  # the attention kernels
        for call in calls(spec, engine):
            rows = np.array([float(n)])
            whole += call.count * float(MadeUpPrices().seconds(call, rows)[0][0])
        pieces = 2 * spec.layers + 2  # each rounded to a picosecond
        assert abs(step_time.times(decodes(n)).forward - whole * PS) <= pieces


def test_the_rows_that_sample_close_the_step() -> None:
    spec = model("llama-3.1-8b")
    step_time, _ = attention_ffn_step_time(made(content(), spec))
    shape = decodes(64)
    longer = step_time.times(shape).forward - step_time.times(replace(shape, sampled=1)).forward
    heads = [call for call in calls(spec, Engine()) if call.rows == SAMPLED]
    price = [MadeUpPrices().seconds(call, np.array([64.0, 1.0]))[0] for call in heads]
    assert longer == pytest.approx(sum(p[0] - p[1] for p in price) * PS, abs=4)


def test_tokens_are_sent_once_to_every_rank_that_holds_one_of_their_experts() -> None:
    """By drawing experts: 3 attention ranks of TP 2, two clusters of 4 and 2 expert ranks."""
    spec = model("qwen3-30b-a3b")  # 128 experts, 8 a token
    assert spec.moe is not None
    attention = Cluster(
        name="a", role="attention", replicas=3,
        engine=Engine(tensor_parallel_size=2, max_num_batched_tokens=64, max_num_seqs=64,
                      enforce_eager=True),
    )  # fmt: skip
    link = Link(**{"from": "a", "to": "f", "bandwidth_gb_s": 50.0})
    sides = []
    for ranks, experts in ((4, 96), (2, 32)):
        engine = Engine(data_parallel_size=ranks, enable_expert_parallel=True)
        cluster = Cluster(name=f"f{ranks}", role="ffn", engine=engine)
        share = experts / 128
        sides.append(FFNSide(cluster, cast(Prices, MadeUpPrices()), link, link, experts, share))
    side = AttentionSide(attention, cast(Prices, MadeUpPrices()), [grid()])
    split = Split(spec, side, sides, create_strategy("none"), (1, 1))
    step_time, _ = attention_ffn_step_time(split)
    pipeline = step_time.pipeline_of(replace(decodes(60), engine_tokens=180, most_tokens=60))
    rng = np.random.default_rng(0)
    chosen = rng.random((180 * 200, 128)).argsort(1)[:, :8]
    owner = np.concatenate([np.repeat(np.arange(4), 24), np.repeat([4, 5], 16)])
    goes = np.stack([(owner[chosen] == r).any(1) for r in range(6)], 1)
    received = goes.mean(0) * 180  # tokens of a step, by rank
    sent = [received[:4].sum() / 6, received[4:].sum() / 6]  # by port, 6 of attention
    size = spec.hidden * 2 + 8 * 8
    for lane, busiest in enumerate((max(received[0], sent[0]), max(received[4], sent[1]))):
        seconds = pipeline.durations[1, 0, 0, lane] / PS
        assert seconds == pytest.approx(busiest * size / 50e9, rel=0.02)
    gemms = [MadeUpPrices(), MadeUpPrices()]
    for part, prices in zip(sides, gemms, strict=True):
        part.prices = cast(Prices, prices)
    attention_ffn_step_time(replace(split, routed={}))
    for prices, pairs in zip(gemms, (180 * 8 * 96 / 128 / 4, 180 * 8 * 32 / 128 / 2), strict=True):
        ((call, rows),) = [x for x in prices.asked if x[0].family == "grouped_gemm"]
        assert rows[179] * 8 / call.shape["ep"] == pytest.approx(pairs)
        assert call.shape["local_experts"] in (24, 16)


def test_ranks_of_unequal_batches_step_as_the_slowest_does() -> None:
    """One of 4 attention ranks has 100 decodes, the others 20: the FFN gets 160 tokens."""
    spec = model("qwen3-30b-a3b")
    wired = {"bandwidth_gb_s": 50.0}
    links = [{"from": "a", "to": "f", **wired}, {"from": "f", "to": "a", **wired}]
    experts = {"data_parallel_size": 4, "enable_expert_parallel": True}
    described = content(ffn=experts, links=links)
    described["clusters"][0]["engine"] = ENGINE | {"data_parallel_size": 4}
    step_time, _ = attention_ffn_step_time(made(described, spec))
    together = {"engine_tokens": 160, "most_tokens": 100, "most_rows": 100}
    full = step_time.pipeline_of(replace(decodes(100), **together)).durations.copy()
    less = step_time.pipeline_of(replace(decodes(20), **together)).durations.copy()
    attention, a2f, ffn, _ = full[:4, 0, 0, 0] - less[:4, 0, 0, 0]
    assert ffn == 0  # what FFN ranks do is everyone's
    assert attention > 0
    # the port of the fullest attention rank decides: 3.6 copies of its 100 tokens, of one FFN
    # rank's port 0.9 of the 160
    assert a2f > 0
    even = step_time.pipeline_of(
        replace(decodes(40), engine_tokens=160, most_tokens=40, most_rows=40)
    )
    assert even.durations[2, 0, 0, 0] == full[2, 0, 0, 0]


def test_all_ranks_cut_a_step_alike() -> None:
    spec = model("llama-3.1-8b")
    policy = {"policy": "ping_pong", "micro_batches": 3}
    step_time, _ = attention_ffn_step_time(made(content(policy), spec))
    alone = step_time.pipeline_of(decodes(2))
    beside = step_time.pipeline_of(
        replace(decodes(2), engine_tokens=90, most_tokens=88, most_rows=88)
    )
    assert (alone.micro_batches, beside.micro_batches) == (2, 3)
    assert beside.durations[2, 0].min() > 0
    assert beside.durations[0, 0, 0] == 0  # a micro-batch that this rank has no row for


@pytest.mark.parametrize(
    "policy", ["none", "two_batch", "ping_pong", "three_stage", "shared_expert"]
)
def test_faster_parts_never_slow_a_step(policy: str) -> None:
    spec = model("deepseek-v2-lite")
    slow = {"bandwidth_gb_s": 5.0, "latency_us": 20.0}
    links = [{"from": "a", "to": "f", **slow}, {"from": "f", "to": "a", **slow}]
    described = content({"policy": policy}, links=links)
    base = attention_ffn_step_time(made(described, spec))[0]
    faster = [
        attention_ffn_step_time(made(described, spec, (1.0, 2.0)))[0],
        attention_ffn_step_time(made(described, spec, (2.0, 1.0)))[0],
        attention_ffn_step_time(made(content({"policy": policy}), spec))[0],
    ]
    for n in (1, 2, 50, 256):
        whole = base.times(decodes(n)).forward
        taken = [model.times(decodes(n)).forward for model in faster]
        assert max(taken) <= whole
        assert min(taken) < whole
        for idle in idle_times(base.pipeline_of(decodes(n))):
            assert idle.busy_ps + sum(idle.waited_ps.values()) <= whole


def test_replicated_experts_go_where_the_choice_says() -> None:
    placement = {"x": [[0, 5]], "y": [[4, 7]]}
    held = experts_held(placement, ["x", "y"], 8)
    loads = np.array([[0.3, 0.1, 0.1, 0.1, 0.2, 0.1, 0.05, 0.05]])
    assert cluster_shares(cluster_parts(held, None), loads)[0] == pytest.approx([0.75, 0.25])
    assert cluster_shares(cluster_parts(held, "first"), loads)[0] == pytest.approx([0.9, 0.1])
    with pytest.raises(
        ConfigError, match=r"moe\.replica_choice: unknown 'evn'; did you mean 'even'"
    ):
        cluster_parts(held, "evn")


def test_an_attention_rank_holds_no_ffn_weights() -> None:
    spec = model("deepseek-v3")
    part = parameters(attention_part(spec)) / parameters(spec)
    assert 0.015 < part < 0.025  # 11 B of MLA and 1.9 B of embeddings, of 671 B


def moe(placement: Any, *names: str) -> dict[str, Any]:
    """Two FFN clusters with this placement."""
    described = content(moe={"placement": placement})
    described["clusters"].append({"name": "g", "role": "ffn", "engine": ENGINE})
    described["links"] += [{"from": "a", "to": "g", **FREE}, {"from": "g", "to": "a", **FREE}]
    return described


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (
            content(links=[{"from": "f", "to": "a", **FREE}]),
            "links: one from a to f is needed, for the activations of every layer, got 0",
        ),
        (
            content(links=[{"from": "a", "to": "f", **FREE}]),
            "links: one from f to a is needed, for the activations of every layer, got 0",
        ),
        (
            content(ffn={"num_gpu_blocks": 100}),
            "clusters[f].engine.num_gpu_blocks: an FFN cluster holds no KV cache; give it to the "
            "attention cluster",
        ),
        (
            content(clusters=[{"name": "a", "role": "attention"}]),
            "clusters: one with role attention and one or more with role ffn belong together, "
            "got a: attention",
        ),
        (
            moe("linear"),
            "moe.placement: says not which experts each of f, g holds; give "
            "{cluster: [[first, last], ...]}",
        ),
        (
            moe({"f": [[0, 63]], "g": [[70, 127]]}),
            "moe.placement: expert 64 and 5 more is placed in no cluster",
        ),
        (moe({"f": [[0, 127]]}), "moe.placement: cluster 'g' holds no expert"),
        (
            moe({"f": [[0, 128]]}),
            "moe.placement.f: [0, 128] is no range of the model's experts 0 to 127",
        ),
        (
            moe({"f": [0, 127]}),
            "moe.placement.f: expected [[first, last], ...], got [0, 127]",
        ),
        (
            content(ffn={"data_parallel_size": 3, "enable_expert_parallel": True}),
            "moe.placement.f: 128 experts cannot be divided over 3 expert-parallel ranks",
        ),
        (
            content({"policy": "ping_pong", "micro_batches": 0}),
            "pipeline.micro_batches: must be at least 1, got 0",
        ),
        (
            content({"policy": "two_batch", "micro_batches": 3}),
            "pipeline.micro_batches: two_batch makes 2, got 3",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(described: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        attention_ffn(parse_deployment(described, "d.yaml"), model("qwen3-30b-a3b"))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("policy", "given", "tried"),
    [
        ("none", 1, (1, 1)), ("two_batch", 1, (2, 2)), ("two_batch", "auto", (2, 2)),
        ("ping_pong", 3, (3, 3)), ("ping_pong", "auto", (1, 4)), ("three_stage", 1, (3, 3)),
        ("three_stage", "auto", (3, 4)),
    ],
)  # fmt: skip
def test_how_many_micro_batches_are_tried(policy: str, given: Any, tried: tuple[int, int]) -> None:
    described = content({"policy": policy, "micro_batches": given})
    found = attention_ffn(parse_deployment(described, "d.yaml"), model("llama-3.1-8b"))
    assert found.micro_batches == tried
