"""Layouts in step time: tensor, data and expert parallel ranks, and the links between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.deployment import Engine
from simulator.hardware import DeviceLink, Hardware, load_hardware
from simulator.model import ModelSpec, model_from_config
from simulator.moe.laws import Dirichlet, LoadLaw, Prompts, Uniform, Zipf
from simulator.moe.placement import PLACEMENTS
from simulator.step_time.baking import bake
from simulator.step_time.base import BatchShape
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.kernel_types import KernelTypes
from simulator.step_time.layers import COLLECTIVES, attention_calls, calls
from simulator.step_time.links import link_seconds
from simulator.step_time.prices import Prices
from simulator.step_time.tables import OperatorStepTime
from simulator.step_time.unmeasured import Unmeasured
from traces.errors import ConfigError
from traces.schema import KERNELS

BF16 = KernelTypes(*["bfloat16"] * 4)
DEVICE = load_hardware("h100_sxm")
KEY = {
    "timing": "kernel", "device": "h100_sxm", "engine": "vllm", "engine_version": "0.32.0",
    "dtype": "bfloat16",
}  # fmt: skip
MODEL = model_from_config(
    {
        "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 512,
        "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 32,
        "intermediate_size": 128, "max_position_embeddings": 4096,
    },
    "tiny",
)  # fmt: skip


def engine(**changes: Any) -> Engine:
    given = {"max_num_seqs": 16, "max_num_batched_tokens": 256, "enforce_eager": True}
    return Engine(**(given | changes))


def kernels(model: ModelSpec, *engines: Engine) -> pa.Table:
    """Rows for every operator of the engines: 1 us and 10 ns a token, experts 1 us each."""
    rows: list[dict[str, Any]] = []
    for e in engines:
        for call in calls(model, e):
            if call.family == "linear":
                rows += [
                    {"operator": "linear", "layer": call.layer, "m": m, **call.shape,
                     "duration_s": 1e-6 + 1e-8 * m}
                    for m in (1, 64, 1024)
                ]  # fmt: skip
            if call.family == "grouped_gemm":
                shape = {k: v for k, v in call.shape.items() if k != "local_experts"}
                rows += [
                    {"operator": "grouped_gemm", **shape, "ep": 1, "tokens": t,
                     "routed_tokens": 4 * t, "active_experts": a,
                     "duration_s": 1e-6 * a + 1e-8 * 4 * t}
                    for t in (1, 4, 16, 64, 256, 1024) for a in (1, 2, 4, 8, 16, 32) if a <= 4 * t
                ]  # fmt: skip
        for attention in attention_calls(model, e.tensor_parallel_size):
            rows += [
                {"operator": "attention_mixed", "heads": attention.heads, "window": 0,
                 "kv_heads": attention.kv_heads, "head_dim": attention.head_dim,
                 "query_lens": [q] * bool(q) + [1] * n, "context_lens": [0] * bool(q) + [k] * n,
                 "duration_s": 1e-6 + 1e-9 * q + 1e-10 * n * k}
                for q in (0, 16, 256) for n in (0, 1, 4, 16) for k in ((0, 16, 256) if n else (0,))
                if q or n
            ]  # fmt: skip
    names = [c.name for c in KERNELS.columns if any(c.name in r for r in [KEY, *rows])]
    return pa.Table.from_pylist([KEY | r for r in rows], schema=KERNELS.arrow_schema(names))


def step(
    e: Engine, loads: ExpertLoads | None = None, hardware: Hardware = DEVICE, model: Any = MODEL
) -> OperatorStepTime:
    table = kernels(model, e)
    prices = Prices(table, hardware, BF16, Unmeasured(table))
    return OperatorStepTime(bake(prices, model, e, loads))


def decode(tokens: int, ranks: int = 1, most: int | None = None, draw: int = 0) -> BatchShape:
    return BatchShape(
        tokens=tokens, rows=tokens, sampled=tokens, decodes=tokens, decode_context=tokens * 64,
        decode_context_sq=tokens * 64**2, engine_tokens=ranks * tokens,
        most_tokens=most or tokens, draw=draw,
    )  # fmt: skip


def forward(model: OperatorStepTime, shape: BatchShape) -> float:
    return model.times(shape).forward / 1e12


laws = st.one_of(
    st.just(Uniform()),
    st.builds(Zipf, st.floats(0, 2), st.builds(Prompts, st.floats(0, 3))),
    st.builds(Dirichlet, st.floats(0.1, 20)),
)


@settings(deadline=None, max_examples=15)
@given(laws, st.lists(st.integers(1, 200), min_size=1, max_size=4))
def test_without_other_ranks_expert_parallelism_is_tensor_parallelism(
    law: LoadLaw, batches: list[int]
) -> None:
    loads = ExpertLoads(law)
    alone, whole = step(engine(), loads), step(engine(enable_expert_parallel=True), loads)
    for draw, tokens in enumerate(batches):
        shape = replace(decode(tokens, draw=draw), engine_prefill=tokens // 2)
        assert alone.times(shape) == whole.times(shape)
    assert whole.spent()["straggler"] == 0


def test_collectives_of_each_layout() -> None:
    def found(**layout: Any) -> dict[str, tuple[str, int, int]]:
        return {
            c.layer: (c.family, c.shape["ranks"], c.count)
            for c in calls(MODEL, engine(**layout))
            if c.family in COLLECTIVES
        }

    tp = {"all_reduce": ("all_reduce", 2, 4), "logits": ("all_gather", 2, 1)}
    assert found() == found(data_parallel_size=1) == {}
    assert found(tensor_parallel_size=2) == tp
    assert found(tensor_parallel_size=2, enable_expert_parallel=True) == tp
    split = {"dispatch": ("all_gather", 4, 4), "combine": ("reduce_scatter", 4, 4)}
    assert found(data_parallel_size=4) == split
    assert found(data_parallel_size=4, enable_expert_parallel=True) == split
    assert found(data_parallel_size=4, tensor_parallel_size=2) == tp | split
    apart = {"dispatch": ("all_gather", 8, 4), "combine": ("reduce_scatter", 8, 4)}
    whole = found(data_parallel_size=4, tensor_parallel_size=2, enable_expert_parallel=True)
    assert whole == tp | apart | {"restore": ("all_gather", 2, 4)}
    sent = found(
        data_parallel_size=4, enable_expert_parallel=True, all2all_backend="deepep_low_latency"
    )
    assert sent == {"dispatch": ("all_to_all", 4, 4), "combine": ("all_to_all", 4, 4)}


def test_weights_of_the_experts_are_split_over_all_ranks() -> None:
    for whole in (True, False):
        layout = engine(tensor_parallel_size=2, data_parallel_size=4, enable_expert_parallel=whole)
        (gemm,) = (c for c in calls(MODEL, layout) if c.family == "grouped_gemm")
        assert gemm.shape["tp"] * gemm.shape["ep"] == 8
        assert gemm.shape["local_experts"] * gemm.shape["ep"] == 32


EP4 = {"data_parallel_size": 4, "enable_expert_parallel": True}


def test_even_loads_have_no_straggler_and_others_do() -> None:
    even, uneven = step(engine(**EP4)), step(engine(**EP4), ExpertLoads(Zipf(1.0)))
    for model in (even, uneven):
        for draw in range(40):
            forward(model, decode(16, ranks=4, draw=draw))
    assert even.spent()["straggler"] == 0
    assert uneven.spent()["straggler"] > 0
    assert uneven.spent()["collectives"] == pytest.approx(even.spent()["collectives"])


def test_a_draw_is_the_step_s_and_the_same_each_time() -> None:
    model = step(engine(**EP4), ExpertLoads(Dirichlet(1.0)))
    times = [forward(model, decode(16, ranks=4, draw=d)) for d in (0, 1, 0, 32)]
    assert times[0] == times[2] == times[3] != times[1]


def test_a_prompt_wakes_fewer_experts_than_as_many_decodes() -> None:
    """By the kernels' prices: 1 us for each awake; between, the prompt beside decodes."""
    model = step(engine(**EP4), ExpertLoads(Dirichlet(4.0, Prompts(3.0))))
    decodes = decode(16)

    def experts(shape: BatchShape) -> float:
        before = model.spent()["experts"]
        for draw in range(32):
            forward(model, replace(shape, draw=draw))
        return model.spent()["experts"] - before

    alone, half, none = (experts(replace(decodes, engine_prefill=n)) for n in (16, 8, 0))
    assert alone < 0.9 * half
    assert half < 0.95 * none


def test_redundant_experts_shorten_the_wait() -> None:
    loads = [ExpertLoads(Zipf(1.0), PLACEMENTS[name]()) for name in ("linear", "eplb")]
    more = {"enable_eplb": True, "num_redundant_experts": 8}
    linear, eplb = step(engine(**EP4), loads[0]), step(engine(**EP4, **more), loads[1])
    for model in (linear, eplb):
        forward(model, decode(200, ranks=4))
    assert eplb.spent()["straggler"] < linear.spent()["straggler"] / 2


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from([(1, 1), (2, 1), (1, 4), (2, 4), (4, 8)]),
    st.booleans(),
    st.sampled_from(["allgather_reducescatter", "deepep_high_throughput"]),
    st.sampled_from(["intra_node", "inter_node"]),
    st.integers(1, 16),
)
def test_more_bandwidth_never_slows(
    layout: tuple[int, int], whole: bool, backend: str, which: str, tokens: int
) -> None:
    e = engine(
        tensor_parallel_size=layout[0], data_parallel_size=layout[1],
        enable_expert_parallel=whole, all2all_backend=backend,
    )  # fmt: skip
    link: DeviceLink = getattr(DEVICE, which)
    wide = link.model_copy(update={"bandwidth_gb_s": 2 * link.bandwidth_gb_s})
    faster = step(e, hardware=DEVICE.model_copy(update={which: wide}))
    shape = decode(tokens, ranks=layout[1])
    assert forward(faster, shape) <= forward(step(e), shape)


def test_pairs_of_other_ranks_experts_cost_the_zeros_that_are_written_for_them() -> None:
    """By hand: two ranks have all tokens, each runs half the pairs and passes over the others."""
    layout = engine(data_parallel_size=2, enable_expert_parallel=True)
    (gemm,) = (c for c in calls(MODEL, layout) if c.family == "grouped_gemm")
    tokens = 64
    pairs, active = np.full(2, tokens * 4 / 2), np.full(2, 16.0)

    def seconds(call: Any, dtype: str, gathered: float) -> float:
        table = kernels(MODEL, layout)
        at = table.column_names.index("dtype")
        table = table.set_column(at, "dtype", pa.array([dtype] * len(table)))
        prices = Prices(table, DEVICE, KernelTypes(*[dtype] * 4), Unmeasured(table))
        found, outside = prices.experts(call, pairs, active, gathered)
        assert not outside.any()
        return float(found[0])

    own = seconds(gemm, "bfloat16", 0.0)
    # gate and up written and read, the activation written, the output written and read
    elements = 2 * 2 * 32 + 32 + 2 * 64
    moved = tokens * 4 / 2 * 2 * elements / (DEVICE.memory_bandwidth_gb_s * 1e9)
    assert seconds(gemm, "bfloat16", tokens) == pytest.approx(own + moved)
    assert seconds(gemm, "fp8", tokens) == own  # kernels that never see them


def test_ranks_on_several_nodes_need_a_link_between_them() -> None:
    lonely = DEVICE.model_copy(update={"inter_node": None})
    step(engine(**EP4), hardware=lonely)
    message = "h100_sxm: no inter_node link, but dispatch of 16 ranks spreads over 2 nodes of 8"
    with pytest.raises(ConfigError, match=message):
        step(engine(**EP4 | {"data_parallel_size": 16}), hardware=lonely)


def test_two_stages_between_nodes_are_slower_than_one_node() -> None:
    big = DEVICE.model_copy(update={"gpus_per_domain": 16})
    for layer in ("dispatch", "combine"):
        (call,) = (
            c for c in calls(MODEL, engine(**EP4 | {"data_parallel_size": 16})) if c.layer == layer
        )
        size = np.array([1e3, 1e6, 1e9])
        one, two = link_seconds(call, size, big), link_seconds(call, size, DEVICE)
        assert (two > one).all()
        # all but a rank's share of a node crosses its own 50 GB/s in half
        assert two[-1] == pytest.approx(1e9 / 8 / 2 / 50e9 + 1e9 * 7 / 8 / 450e9, rel=0.01)


def test_ranks_that_replay_a_graph_run_as_many_tokens_as_the_fullest() -> None:
    e = engine(**EP4, enforce_eager=False, max_num_batched_tokens=256)
    largest = e.graph_sizes()[-1]
    model = step(e)
    small = decode(1, ranks=4)
    together = replace(small, engine_tokens=3 + 16, most_tokens=16)
    full = decode(16, ranks=4)
    local = forward(model, full) - forward(model, together)
    assert 0 < local < 1e-6 * 4  # its own attention and sampling only
    eager = replace(small, engine_tokens=3 + largest + 1, most_tokens=largest + 1)
    assert forward(model, eager) < forward(model, replace(eager, tokens=largest + 1))


@pytest.mark.parametrize("gb_s", [450.0, 0.05])
def test_halves_of_a_step_hide_all_but_a_piece_of_the_exchange(gb_s: float) -> None:
    """By hand: both halves send half the tokens of all; what is shorter hides behind the other."""

    def linked(gb_s: float, latency_us: float) -> Hardware:
        link = DEVICE.intra_node.model_copy(
            update={"bandwidth_gb_s": gb_s, "latency_us": latency_us}
        )  # fmt: skip
        return DEVICE.model_copy(update={"intra_node": link})

    ranks, tokens, layers = 4, 64, MODEL.layers
    shape = replace(decode(tokens, ranks), halved=1)
    free = forward(step(engine(**EP4), hardware=linked(1e9, 0.0)), shape)
    wide, chosen = 2 * MODEL.hidden, 8 * 4  # activations in 16 bits; four experts and weights
    sent = sum(
        ranks * tokens / 2 * size * (ranks - 1) / ranks / (gb_s * 1e9) + 5e-6
        for size in (wide + chosen, wide)
    )
    exchange = layers * 2 * sent
    assert (exchange > free) == (gb_s < 1)
    halved = max(free, exchange) + min(free, exchange) / (2 * layers)
    assert forward(step(engine(**EP4), hardware=linked(gb_s, 5.0)), shape) == pytest.approx(
        halved, rel=2e-3
    )


def test_pipeline_stages_add_hops_and_nothing_else() -> None:
    one, two = step(engine()), step(engine(pipeline_parallel_size=2))
    for tokens in (1, 16):
        alone, staged = one.times(decode(tokens)), two.times(decode(tokens))
        assert staged._replace(hop=0) == alone
        size = 4 * 64 * tokens  # hidden states and residual in 16 bits
        assert staged.hop == round((size / 450e9 + 5e-6) * 1e12)
    # of three boundaries between four stages of four GPUs each, one lies between nodes of 8
    wide = step(engine(pipeline_parallel_size=4, tensor_parallel_size=4)).times(decode(1))
    inside, across = 64 / 450e9 + 5e-6, 64 / 50e9 + 17e-6
    assert wide.hop == pytest.approx((2 * inside + across) / 3 * 1e12, abs=1)


def run_lock_step(make: Callable[..., Any], law: Dirichlet) -> dict[str, pa.Table]:
    from worlds import config, demand_of, run_demand

    e = engine(**EP4)
    world = config(
        max_num_seqs=16, max_num_batched_tokens=256, lock_step_ranks=4, async_scheduling=True,
        num_gpu_blocks=400,
    )  # fmt: skip
    rows = [(7.0 * (i // 3), 20 + 7 * i % 90, 1 + i % 50) for i in range(60)]
    return run_demand(
        demand_of(*rows, settings=world), make, replicas=8, router="vllm_dp",
        model=step(e, ExpertLoads(law)),
    )  # fmt: skip


@pytest.mark.parametrize("law", [Dirichlet(1.0), Dirichlet(1.0, Prompts(2.0, 0.1, 50))])
def test_drawn_loads_are_the_same_in_both_engines(law: Dirichlet) -> None:
    from simulator.fleet import CompiledFleet, PlainFleet

    plain, compiled = (run_lock_step(make, law) for make in (PlainFleet, CompiledFleet))
    assert all(plain[name].equals(compiled[name]) for name in plain)
    assert len(set(plain["steps"]["forward_s"].to_pylist())) > 50


def test_shared_experts_run_beside_the_routed_ones_in_small_batches() -> None:
    """vLLM's second stream: up to 256 tokens they take no time of their own, on a GPU."""
    assert MODEL.moe is not None
    shared = replace(MODEL, moe=replace(MODEL.moe, shared_inter=48))
    large = {"max_num_batched_tokens": 512}
    model, plain = (step(engine(**large), model=m) for m in (shared, MODEL))

    def gap(tokens: int) -> float:
        return forward(model, decode(tokens)) - forward(plain, decode(tokens))

    assert gap(1) == gap(256) == 0
    alone = MODEL.moe_layers * 2 * (1e-6 + 1e-8 * 257)  # gate_up and down
    assert gap(257) > alone
    eplb = engine(**large, enable_eplb=True, all2all_backend="deepep_low_latency")
    assert {c.beside for c in calls(shared, engine())} == {0, 256}
    assert {c.beside for c in calls(shared, eplb)} == {0}
