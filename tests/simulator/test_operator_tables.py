"""Step times from operator tables: what is priced, from what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.interpolate import RegularGridInterpolator

from simulator.deployment import SHIPPED, Engine
from simulator.hardware import load_hardware
from simulator.model import ModelSpec, load_model
from simulator.step_time.attention_grid import measured_grid
from simulator.step_time.attention_predicted import predicted_grid
from simulator.step_time.baking import bake
from simulator.step_time.base import BatchShape
from simulator.step_time.kernel_types import KernelTypes
from simulator.step_time.layers import TOKENS, AttentionCall, Call, attention_calls, calls
from simulator.step_time.padding import padded_tokens
from simulator.step_time.prices import KERNEL_FLOOR_S, Prices
from simulator.step_time.select_kernels import select_kernels
from simulator.step_time.tables import OperatorStepTime, load_tables, save_tables
from simulator.step_time.unmeasured import Unmeasured
from traces.errors import ConfigError
from traces.schema import KERNELS

DEVICE = load_hardware("rtx_4090")
BF16 = KernelTypes(*["bfloat16"] * 4)
KEY = {
    "timing": "kernel", "device": "rtx_4090", "engine": "vllm", "engine_version": "0.19.0",
    "dtype": "bfloat16",
}  # fmt: skip


def model(name: str = "llama-3.1-8b") -> ModelSpec:
    return load_model(SHIPPED / "traces" / "models" / f"{name}.json")


def table(rows: list[dict[str, object]]) -> pa.Table:
    names = [c.name for c in KERNELS.columns if any(c.name in r for r in [KEY, *rows])]
    return pa.Table.from_pylist([KEY | r for r in rows], schema=KERNELS.arrow_schema(names))


def attention_row(
    queries: list[int], contexts: list[int], layer: str | None = None, extra: float = 0.0
) -> dict[str, object]:
    pairs = sum(q * c + q * (q + 1) / 2 for q, c in zip(queries, contexts, strict=True) if q > 1)
    kv = sum(c for q, c in zip(queries, contexts, strict=True) if q == 1)
    return {
        "operator": "attention_mixed", "layer": layer, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "window": 0, "query_lens": queries, "context_lens": contexts,
        "duration_s": (1e-6 + pairs * 1e-12 + kv * 1e-10) * (1 + extra),
    }  # fmt: skip


def attention_rows() -> list[dict[str, object]]:
    """Equal and unequal contexts, exactly linear: 1 us + pairs 1e-12 + KV 1e-10."""
    rows: list[dict[str, object]] = []

    def add(queries: list[int], contexts: list[int], layer: str | None, extra: float) -> None:
        rows.append(attention_row(queries, contexts, layer, extra))

    for n in (0, 1, 2, 4, 8):
        for k in (64, 256, 1024) if n else (0,):
            for q in (0, 64, 512):
                for c in (0, 256) if q else (0,):
                    if n or q:
                        add([q] * bool(q) + [1] * n, [c] * bool(q) + [k] * n, None, 0.0)
    for n in (2, 4, 8):
        for k in (64, 256, 1024):
            half = [k // 2] * (n // 2) + [k + k // 2] * (n // 2)  # variation 1/2
            add([1] * n, [k] * n, "skew", 0.0)
            add([1] * n, half, "skew", 0.1)
    return rows


def priced(extra: list[dict[str, object]] | None = None) -> Prices:
    spec, rows = model(), attention_rows()
    for call in calls(spec, Engine()):
        if call.family == "linear":
            rows += [
                {"operator": "linear", "layer": call.layer, "m": m, **call.shape,
                 "duration_s": 1e-5 * m}
                for m in (1, 64, 512)
            ]  # fmt: skip
    kernels = table(rows + (extra or []))
    return Prices(kernels, DEVICE, BF16, Unmeasured(kernels))


def test_operators_of_a_dense_model() -> None:
    found = {c.layer: (c.shape, c.count) for c in calls(model(), Engine())}
    assert found["qkv_proj"] == ({"n": 6144, "k": 4096}, 32)
    assert found["o_proj"] == ({"n": 4096, "k": 4096}, 32)
    assert found["gate_up_proj"] == ({"n": 28672, "k": 4096}, 32)
    assert found["down_proj"] == ({"n": 4096, "k": 14336}, 32)
    assert found["lm_head"] == ({"n": 128256, "k": 4096}, 1)
    assert "all_reduce" not in found
    assert attention_calls(model(), 1) == [AttentionCall("gqa", 32, 8, 128, 0, 32)]


def test_tensor_parallel_halves_and_reduces() -> None:
    found = {c.layer: c for c in calls(model(), Engine(tensor_parallel_size=2))}
    assert found["qkv_proj"].shape == {"n": 3072, "k": 4096}
    assert found["o_proj"].shape == {"n": 4096, "k": 2048}
    reduces = [c for c in calls(model(), Engine(tensor_parallel_size=2)) if c.layer == "all_reduce"]
    assert sum(c.count for c in reduces) == 2 * 32  # after attention and after the MLP
    assert reduces[0].shape == {"bytes": 8192, "ranks": 2}


def test_weights_of_the_projections_are_the_model_s() -> None:
    for name in ("llama-3.1-8b", "qwen3-14b", "qwen2.5-7b"):
        spec = model(name)
        linear = [c for c in calls(spec, Engine()) if c.family == "linear"]
        weights = sum(c.count * c.shape["n"] * c.shape["k"] for c in linear)
        embedding = spec.vocab * spec.hidden
        from simulator.weights import parameters

        total = parameters(spec) - (0 if spec.tied_embeddings else embedding)
        assert weights == pytest.approx(total, rel=1e-3)


def test_every_layer_has_attention_and_an_mlp() -> None:
    for path in sorted((SHIPPED / "traces" / "models").glob("*.json")):
        spec = load_model(path)
        assert sum(c.count for c in attention_calls(spec, 1)) == spec.layers
        found = calls(spec, Engine())
        experts = sum(c.count for c in found if c.family == "grouped_gemm")
        assert experts == spec.moe_layers
        assert sum(c.count for c in found if c.layer == "o_proj") == spec.layers


def test_curves_meet_the_measured_points_and_say_where_they_end() -> None:
    call = Call("linear", "o_proj", TOKENS, {"n": 4096, "k": 4096})
    seconds, outside = priced().seconds(call, np.array([1.0, 64.0, 128.0, 512.0, 1024.0]))
    assert seconds == pytest.approx([1e-5, 64e-5, 128e-5, 512e-5, 1024e-5])
    assert outside.tolist() == [False, False, False, False, True]


def test_contexts_shorter_than_any_measured_are_counted() -> None:
    engine = Engine(max_num_seqs=8, max_num_batched_tokens=512, enforce_eager=True)
    step = OperatorStepTime(bake(priced(), model(), engine))
    for context, outside in ((256, 0), (64, 0), (16, 1)):
        one = {"tokens": 1, "rows": 1, "sampled": 1, "decodes": 1}
        longest = {"decode_context": context, "decode_context_max": context}
        step.times(BatchShape(**one, **longest, decode_context_sq=context**2))
        assert step.coverage()["extrapolated"] == outside


def test_what_was_not_measured_is_estimated_or_refused() -> None:
    prices = priced()
    seconds, _ = prices.seconds(
        Call("elementwise", "kv_write", TOKENS, {"hidden": 2048}), np.ones(1)
    )
    assert seconds.tolist() == [KERNEL_FLOOR_S]
    assert prices.estimated == {"kv_write": "memory moved"}
    experts = {"experts": 8, "top_k": 2, "hidden": 4096, "inter": 1024, "tp": 1, "ep": 1}
    with pytest.raises(ConfigError, match="no grouped_gemm kernel for experts"):
        prices.seconds(Call("grouped_gemm", "experts", TOKENS, experts), np.ones(1))
    heads = AttentionCall("gqa", 64, 8, 128, 0, 1)
    assert measured_grid(prices.kernels, heads) is None
    with pytest.raises(ConfigError, match="no attention_prefill kernel in bfloat16"):
        predicted_grid(prices.unmeasured, BF16, heads, model(), Engine())


def test_attention_of_a_served_workload_prices_batches_it_has_not_seen() -> None:
    """Decodes of a captured workload hardly ever have equal contexts: no grid, but points."""
    rng = np.random.default_rng(5)
    rows, points = [], []
    for number in range(160):
        decodes, chunk = int(rng.integers(1, 40)), int(rng.integers(16, 512)) * (number % 2)
        contexts = rng.integers(50, 600, decodes).tolist()
        rows.append(
            attention_row([chunk] * (chunk > 0) + [1] * decodes, [0] * (chunk > 0) + contexts)
        )
        points.append((chunk, 0, decodes, np.mean(contexts)))
    grid = measured_grid(table(rows[:80]), AttentionCall("gqa", 32, 8, 128, 0, 1))
    assert grid is not None
    assert grid.spread_most > 0.2
    inside = [np.clip(v, a[0], a[-1]) for v, a in zip(np.transpose(points), grid.axes, strict=True)]
    told = RegularGridInterpolator(grid.axes, grid.seconds)(np.transpose(inside))
    seconds = np.array([row["duration_s"] for row in rows], float)
    assert np.abs(told / seconds - 1)[80:].mean() < 0.05


def test_a_grid_of_single_decodes_keeps_what_was_measured() -> None:
    rows = [attention_row([1], [context]) for context in (64, 128, 700)]
    grid = measured_grid(table(rows), AttentionCall("gqa", 32, 8, 128, 0, 1))
    assert grid is not None
    assert grid.seconds[0, 0, 1, 1:].tolist() == [row["duration_s"] for row in rows]
    assert grid.measured > 0


def test_kernels_of_another_device_or_dtype_never_enter() -> None:
    kernels = priced().kernels
    with pytest.raises(ConfigError, match=r"no kernel of h100_sxm \(it has: rtx_4090\)"):
        select_kernels(kernels, load_hardware("h100_sxm"), BF16, None, "p")
    with pytest.raises(ConfigError, match="no fp8 kernel times of rtx_4090"):
        select_kernels(kernels, DEVICE, KernelTypes(*["fp8"] * 4), None, "p")
    assert select_kernels(kernels, DEVICE, BF16, "0.32.0", "p")[1] == "0.19.0"


def test_padding_to_graph_sizes() -> None:
    engine = Engine(max_num_seqs=256, max_num_batched_tokens=2048)
    padded = padded_tokens(engine, 2048)
    shown = {n: int(padded[n]) for n in (0, 1, 3, 5, 17, 250, 257, 512, 513, 2048)}
    assert shown == {0: 0, 1: 1, 3: 4, 5: 8, 17: 24, 250: 256, 257: 272, 512: 512, 513: 513,
                     2048: 2048}  # fmt: skip
    eager = Engine(enforce_eager=True, max_num_batched_tokens=2048)
    assert padded_tokens(eager, 2048).tolist() == list(range(2049))


def test_a_step_is_the_sum_of_its_operators(tmp_path: Path) -> None:
    engine = Engine(max_num_seqs=8, max_num_batched_tokens=512, enforce_eager=True)
    prices = priced()
    tables = bake(prices, model(), engine)
    assert set(tables.notes["estimated"]) >= {"kv_write", "sampler"}
    save_tables(tables, tmp_path / "t.npz")
    step = OperatorStepTime(load_tables(tmp_path / "t.npz"))
    decode = BatchShape(
        tokens=4, rows=4, sampled=4, decodes=4, decode_context=1024, decode_context_sq=4 * 256**2
    )
    attention = 32 * (1e-6 + 1024e-10)
    linear = 32 * 4 * 4e-5 + 4e-5  # four projections a layer, and lm_head
    times = step.times(decode)
    found = (times.forward + times.head) / 1e12
    small = found - attention - linear  # 2 norms, rotary, KV write, activation
    sampler = 4 * 128256 * 18 / 1008e9  # bytes at the peak, which lm_head's curve would exceed
    assert small == pytest.approx(KERNEL_FLOOR_S * (32 * 5 + 2) + sampler, rel=0.001)
    # the same tokens of unequal contexts, variation 1/2: attention costs 10 % more
    unequal = BatchShape(
        tokens=4, rows=4, sampled=4, decodes=4, decode_context=1024,
        decode_context_sq=2 * 128**2 + 2 * 384**2,
    )  # fmt: skip
    slower = step.times(unequal).alone / 1e12
    assert slower - found == pytest.approx(0.1 * attention, rel=1e-6)
    assert step.coverage() == {"steps": 2, "extrapolated": 0}
    beyond = BatchShape(
        tokens=4, rows=4, sampled=4, decodes=4, decode_context=4 * 5000,
        decode_context_sq=4 * 5000**2,
    )  # fmt: skip
    step.times(beyond)
    assert step.coverage() == {"steps": 3, "extrapolated": 1}
    assert step.outside() == {"attention": 1}


@pytest.mark.parametrize("slowdown", [0.25, -0.1])
def test_a_slowdown_is_of_every_kernel_and_of_nothing_else(slowdown: float) -> None:
    engine = Engine(max_num_seqs=8, max_num_batched_tokens=512, enforce_eager=True,
                    pipeline_parallel_size=2)  # fmt: skip
    step = OperatorStepTime(bake(priced(), model(), engine))
    shape = BatchShape(
        tokens=68, rows=5, sampled=5, decodes=4, decode_context=1024,
        decode_context_sq=4 * 256**2, prefill_tokens=64, prefill_tokens_sq=64**2,
        prefill_pairs=64 * 65 // 2,
    )  # fmt: skip
    plain = step.times(shape)
    slow = step.with_overhead(step_s=1e-3, slowdown=slowdown).times(shape)
    assert min(plain.forward, plain.head, plain.hop) > 0
    assert slow.forward - 10**9 == pytest.approx(plain.forward * (1 + slowdown), abs=2)
    assert slow.head == pytest.approx(plain.head * (1 + slowdown), abs=2)
    assert slow.hop == pytest.approx(plain.hop * (1 + slowdown), abs=2)


def test_steps_beyond_what_was_measured_are_counted_by_layer(tmp_path: Path) -> None:
    engine = Engine(max_num_seqs=8, max_num_batched_tokens=1024, enforce_eager=True)
    tables = bake(priced(), model(), engine)
    projections = ("down_proj", "gate_up_proj", "o_proj", "qkv_proj")
    assert tables.limits == {name: ("tokens", 512) for name in projections}
    save_tables(tables, tmp_path / "t.npz")
    step = OperatorStepTime(load_tables(tmp_path / "t.npz"))
    for tokens in (512, 513, 1000):
        step.times(BatchShape(tokens=tokens))
    assert step.coverage() == {"steps": 3, "extrapolated": 2}
    assert step.outside() == dict.fromkeys(projections, 2)
