"""Shapes and types that the tables lack: what a deployment is priced by then, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simulator.deployment import SHIPPED, Engine
from simulator.hardware import load_hardware
from simulator.model import ModelSpec, load_model
from simulator.step_time.attention_predicted import ladder, predicted_grid
from simulator.step_time.baking import bake
from simulator.step_time.deployed import deployed_step_time
from simulator.step_time.kernel_types import KernelTypes, kernel_types
from simulator.step_time.layers import TOKENS, AttentionCall, Call
from simulator.step_time.prices import Prices
from simulator.step_time.profile_prices import profile_prices
from simulator.step_time.select_kernels import one_backend, select_kernels
from simulator.step_time.unmeasured import Unmeasured
from traces.errors import ConfigError
from traces.schema import KERNELS

H100 = load_hardware("h100_sxm")
BF16 = KernelTypes(*["bfloat16"] * 4)
KEY = {"timing": "kernel", "device": "h100_sxm", "engine": "vllm", "engine_version": "0.24.0",
       "backend": "one", "dtype": "bfloat16"}  # fmt: skip
HEAD = {"head_dim": 128, "window": 0, "kv_dtype": "bfloat16"}
CALL = AttentionCall("gqa", 32, 8, 128, 0, 32)


def model(name: str = "llama-3.1-8b") -> ModelSpec:
    return load_model(SHIPPED / "traces" / "models" / f"{name}.json")


def table(rows: list[dict[str, object]]) -> pa.Table:
    names = [c.name for c in KERNELS.columns if any(c.name in r for r in [KEY, *rows])]
    return pa.Table.from_pylist([KEY | r for r in rows], schema=KERNELS.arrow_schema(names))


def gemm_s(m: float, n: float, k: float) -> float:
    return 4e-6 + 2 * m * n * k / 6e14 + 2 * n * k / 2.5e12


def prefill_s(heads: float, query: float, context: float) -> float:
    return 5e-6 + 4 * heads * 128 * (query * context + query * (query + 1) / 2) / 4e14


def decode_s(kv_heads: float, batch: float, context: float) -> float:
    return 4e-6 + 4 * batch * (context + 1) * kv_heads * 128 / 2.5e12


def measured() -> list[dict[str, object]]:
    """Too few of each for trees: laws that a roofline can follow."""
    rows: list[dict[str, object]] = [
        {"operator": "linear", "m": m, "n": n, "k": k, "duration_s": gemm_s(m, n, k)}
        for m in (1, 16, 256, 2048) for n in (1024, 4096, 16384, 131072)
        for k in (2048, 8192, 16384)
    ]  # fmt: skip
    for heads in (8, 16, 64):
        rows += [
            {"operator": "attention_prefill", "batch": 1, "query_tokens": q, "context_tokens": 0,
             "heads": heads, "kv_heads": heads // 4, **HEAD, "duration_s": prefill_s(heads, q, 0)}
            for q in (16, 64, 256, 1024, 4096, 8192)
        ]  # fmt: skip
        rows += [
            {"operator": "attention_decode", "batch": b, "query_tokens": 1, "context_tokens": c,
             "heads": heads, "kv_heads": heads // 4, **HEAD,
             "duration_s": decode_s(heads // 4, b, c)}
            for b in (1, 8, 64, 256) for c in (15, 255, 4095, 32767)
        ]  # fmt: skip
    return rows


def prices(rows: list[dict[str, object]] | None = None, types: KernelTypes = BF16) -> Prices:
    kernels = table(rows or measured())
    return Prices(kernels, H100, types, Unmeasured(kernels))


def test_a_shape_between_measured_ones_is_predicted_and_noted() -> None:
    asked = prices()
    sizes = np.array([1.0, 16.0, 100.0, 2048.0, 8192.0])
    seconds, outside = asked.seconds(
        Call("linear", "o_proj", TOKENS, {"n": 6144, "k": 4096}), sizes
    )
    expected = [gemm_s(m, 6144, 4096) for m in sizes]
    np.testing.assert_allclose(seconds, expected, rtol=0.1)
    assert outside.tolist() == [False] * 4 + [True]
    assert asked.unmeasured.used == {
        "o_proj": "fitted to 48 kernels of one, 20% of sizes outside (m 8,192, measured to 2,048)"
    }
    assert asked.estimated == {}


def test_a_measured_shape_keeps_its_curve() -> None:
    asked = prices()
    seconds, _ = asked.seconds(
        Call("linear", "o_proj", TOKENS, {"n": 4096, "k": 8192}), np.array([16.0])
    )
    assert seconds[0] == pytest.approx(gemm_s(16, 4096, 8192), rel=1e-12)
    assert asked.unmeasured.used == {}


def test_attention_of_unseen_heads_is_composed_of_prefill_and_decode() -> None:
    engine = Engine(max_num_seqs=64, max_num_batched_tokens=2048, max_model_len=8192)
    unmeasured = prices().unmeasured
    grid = predicted_grid(unmeasured, BF16, CALL, model(), engine)
    query, context, decodes, mean = grid.axes
    at = np.searchsorted(query, 512), np.searchsorted(decodes, 16), np.searchsorted(mean, 1024)
    chunk = grid.seconds[at[0], 0, 0, 0]
    alone = grid.seconds[0, 0, at[1], at[2]]
    assert chunk == pytest.approx(prefill_s(32, 512, 0), rel=0.1)
    assert alone == pytest.approx(decode_s(8, 16, 1024), rel=0.1)
    shortest = grid.seconds[grid.seconds > 0].min()
    assert grid.seconds[at[0], 0, at[1], at[2]] == pytest.approx(chunk + alone - shortest)
    assert (grid.seconds[0, :, 0, :] == 0).all()
    after = grid.seconds[at[0], np.searchsorted(context, 4096), 0, 0]
    assert after == pytest.approx(prefill_s(32, 512, 4096), rel=0.1)
    assert not grid.spread.any()
    assert 0 < grid.measured < 1  # a context before the chunk was never measured
    assert set(unmeasured.used) == {"attention_prefill", "attention_decode"}


def test_ladders_hold_every_whole_number_once() -> None:
    for first, last, per_octave in ((1, 256, 4), (16, 8192, 4), (16, 40960, 2), (1, 1, 4)):
        steps = ladder(first, last, per_octave)
        assert steps[0] == 0
        assert steps[-1] == last
        assert (np.diff(steps) > 0).all()
        assert (steps == np.round(steps)).all()


def test_kernels_of_two_backends_are_never_averaged() -> None:
    rows = [
        {"operator": "all_reduce", "bytes": size, "ranks": 8, "duration_s": seconds * size, **key}
        for size in (1000, 2000)
        for seconds, key in (
            (1e-9, {"backend": "custom"}),
            (3e-9, {"backend": "custom", "timing": "with_launch"}),
            (5e-9, {"engine": "nccl", "timing": "with_launch"}),
        )
    ]
    kept = one_backend(table(rows))
    assert kept.column("duration_s").to_pylist() == pytest.approx([1e-6, 2e-6])
    call = Call("all_reduce", "all_reduce", TOKENS, {"bytes": 100, "ranks": 8})
    assert prices(rows).seconds(call, np.array([15.0]))[0] == pytest.approx([1.5e-6])


def test_types_of_quantised_models() -> None:
    def types(name: str, **engine: object) -> tuple[str, ...]:
        found = kernel_types(model(name), Engine.model_validate(engine))
        families = (("linear", "o_proj"), ("linear", "lm_head"), ("grouped_gemm", ""),
                    ("attention_decode", ""))  # fmt: skip
        return (*(found.of(*f) for f in families), found.cache)

    plain = "bfloat16"
    assert types("llama-3.1-8b") == (plain,) * 5
    assert types("llama-3.1-8b", quantization="fp8") == ("fp8", plain, "fp8", plain, plain)
    assert types("gpt-oss-120b") == (plain, plain, "w4a16_mxfp4", plain, plain)
    assert types("deepseek-v3", kv_cache_dtype="fp8_e4m3") == (
        "fp8_block", plain, "fp8_block", plain, "fp8"
    )  # fmt: skip
    with pytest.raises(ConfigError, match="unknown 'fp9'"):
        types("llama-3.1-8b", quantization="fp9")


def test_experts_are_drawn_at_random_from_curves_of_an_even_load() -> None:
    shape = {"experts": 8, "local_experts": 8, "top_k": 2, "hidden": 512, "inter": 256, "tp": 1,
             "ep": 1}  # fmt: skip
    rows: list[dict[str, object]] = [
        {"operator": "grouped_gemm", "tokens": t, **shape, "load": load, "duration_s": s * t}
        for t in (1, 64) for load, s in (("balanced", 1e-6), ("power_law_1.2", 2e-6))
    ]  # fmt: skip
    call = Call("grouped_gemm", "experts", TOKENS, dict(shape))
    seconds = prices(rows).seconds(call, np.array([1.0, 4.0, 64.0]))[0]
    drawn = 4 * (1 - (3 / 4) ** 4)  # of 8 experts, as many as so many tokens wake evenly
    assert seconds == pytest.approx([1e-6, drawn * 1e-6, 64e-6], rel=1e-6)
    grid = [{**row, "tokens": t, "duration_s": 1e-6 * t} for row in rows[:1]
            for t in (1, 2, 4, 8, 16, 32, 64, 128)]  # fmt: skip
    other = Call("grouped_gemm", "experts", TOKENS, {**shape, "hidden": 4096})
    assert prices(grid).seconds(other, np.array([4.0, 64.0]))[1].all()  # no such width: counted
    for name, found in (("two", "two"), ("auto", "one")):
        both = table([*rows, *({**r, "backend": "kernels_two"} for r in rows)])
        kept = select_kernels(both, H100, BF16, None, "p", name)[0]
        assert found in kept.column("backend").to_pylist()[0]
    with pytest.raises(ConfigError, match="no grouped_gemm kernel of a backend named 'three'"):
        select_kernels(both, H100, BF16, None, "p", "three")


def test_a_deployment_of_unseen_shapes_is_baked_once_and_its_models_are_kept(
    tmp_path: Path,
) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table(measured()), tmp_path / "kernels.parquet")
    engine = Engine(max_num_seqs=16, max_num_batched_tokens=512, max_model_len=4096)
    said: list[str] = []
    ask = (tmp_path, model(), engine, H100, None, None, said.append)
    _, note = deployed_step_time(*ask)
    assert {s.split()[1] for s in said} == {"linear", "attention_prefill", "attention_decode"}
    assert set(note["fitted"]) == {
        "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head", "attention_prefill",
        "attention_decode",
    }  # fmt: skip
    assert deployed_step_time(*ask)[1] == note
    other = (tmp_path, model("qwen3-14b"), engine, H100, None, None, said.append)
    deployed_step_time(*other)
    assert len(said) == 3  # fitted once, kept for the next deployment


def test_a_measured_module_of_latent_attention_holds_its_projections() -> None:
    rows = measured()
    for operator, batch, query, context in (
        *(("mla_prefill", 1, q, 0) for q in (16, 64, 256, 1024, 2048, 4096, 8192, 16384)),
        *(("mla_decode", b, 1, c) for b in (1, 8, 64) for c in (15, 255, 4095)),
    ):
        seconds = 20e-6 + batch * (query * 1e-7 + context * 1e-9)
        rows.append(
            {"operator": operator, "layer": "mla_module", "batch": batch, "query_tokens": query,
             "context_tokens": context, "heads": 16, "kv_dtype": "bfloat16",
             "dtype": "fp8_block", "duration_s": seconds}
        )  # fmt: skip
    experts = {"experts": 256, "local_experts": 256, "top_k": 8, "hidden": 7168, "inter": 2048,
               "tp": 8, "ep": 1}  # fmt: skip
    rows += [
        {"operator": "grouped_gemm", "tokens": t, **experts, "load": "balanced",
         "dtype": "fp8_block", "duration_s": 1e-4}
        for t in (1, 64, 8192)
    ]  # fmt: skip
    rows += [{**r, "dtype": "fp8"} for r in rows if r["operator"] == "linear"]
    spec = model("deepseek-v3")
    engine = Engine(tensor_parallel_size=8, max_num_seqs=64, max_num_batched_tokens=1024)
    asked = prices(rows, kernel_types(spec, engine))
    tables = bake(asked, spec, engine)
    assert not {"o_proj", "q_b_proj", "kv_write"} & (
        set(asked.estimated) | set(asked.unmeasured.used)
    )
    assert asked.estimated["gate_up_proj"] == "fp8 kernels, none of fp8_block"
    assert asked.estimated["all_reduce"] == "link nvlink4"
    decode = tables.grids[0].seconds[0, 0, np.searchsorted(tables.grids[0].axes[2], 8), 0]
    assert decode == pytest.approx(20e-6, rel=0.1)
    assert tables.layers == [61]


def test_models_of_other_features_are_fitted_again() -> None:
    asked = prices()
    call = Call("linear", "o_proj", TOKENS, {"n": 6144, "k": 4096})
    first = asked.seconds(call, np.array([16.0]))[0]
    stale = asked.unmeasured.library.operators[0]
    stale.features, stale.residual = ("m",), stale.residual + 1
    assert asked.seconds(call, np.array([16.0]))[0] == first


def test_processes_that_share_a_profile_fit_what_is_missing_once(tmp_path: Path) -> None:
    pq.write_table(table(measured()), tmp_path / "kernels.parquet")
    said: list[str] = []
    call = Call("linear", "o_proj", TOKENS, {"n": 6144, "k": 4096})
    shared = (tmp_path, "hash", model(), Engine(), H100, "0.24.0", said.append)
    with profile_prices(*shared) as (one, _), profile_prices(*shared) as (other, _):
        found = [asked.seconds(call, np.array([16.0]))[0] for asked in (one, other)]
    assert found[0] == found[1]
    assert said == ["fitting linear h100_sxm vllm 0.24.0 one bfloat16 kernel (48 rows)"]
    with profile_prices(*shared) as (later, _):
        assert later.seconds(call, np.array([16.0]))[0] == found[0]
    assert len(said) == 1
