"""LLMServingSim's profiles of RTX cards: microseconds, widths of a rank, contexts that differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import yaml

from traces.check import table_faults
from traces.errors import TraceError
from traces.kernels.base import Selection
from traces.kernels.rtx import RTX, SKEW
from traces.schema import KERNELS

MODEL = "meta-llama/Llama-3.1-8B"
META = {
    "model": MODEL,
    "variant": "bf16",
    "vllm_version": "0.19.0",
    "tp_degrees": [1, 2],
    "measurement_iterations": 3,
}
SKEW_HEADER = "regime,n,nb,ratio,skew,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha"


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of one model on one card, at two tensor-parallel sizes."""
    folder = tmp_path / "RTX4090" / MODEL / "bf16"
    put(folder / "meta.yaml", yaml.safe_dump(META))
    for tp, scale in ((1, 1.0), (2, 0.5)):
        directory = folder / f"tp{tp}"
        put(
            directory / "dense.csv",
            f"layer,tokens,time_us\nqkv_proj,8,{40 * scale}\nact_fn,8,{4 * scale}\nlayernorm,8,2\n",
        )
        put(
            directory / "per_sequence.csv",
            f"layer,sequences,time_us\nlm_head,4,{400 * scale}\nsampler,4,10\n",
        )
        put(
            directory / "attention.csv",
            "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
            "0,0,2,128,8\n16,32,0,0,9\n16,32,2,128,12\n",
        )
    return folder


def rows_of(root: Path, operator: str, layer: str | None = None) -> list[dict[str, Any]]:
    table = RTX().read(root, Selection()).table
    assert table_faults(KERNELS, table, "here") == []
    found = table.filter(pc.equal(table["operator"], operator)).to_pylist()
    rows = [{k: v for k, v in row.items() if v is not None} for row in found]
    return [r for r in rows if r.get("layer") == layer]


def test_a_projection_has_the_size_of_a_rank(run: Path, tmp_path: Path) -> None:
    whole, half = rows_of(tmp_path, "linear", "qkv_proj")
    assert whole == {
        "operator": "linear", "layer": "qkv_proj", "m": 8, "n": 6144, "k": 4096,
        "duration_s": pytest.approx(40e-6), "timing": "kernel", "device": "rtx_4090",
        "engine": "vllm", "engine_version": "0.19.0", "dtype": "bfloat16",
    }  # fmt: skip
    assert (half["n"], half["k"], half["duration_s"]) == (3072, 4096, pytest.approx(20e-6))
    heads = rows_of(tmp_path, "linear", "lm_head")
    assert [(r["m"], r["n"]) for r in heads] == [(4, 128256), (4, 64128)]


def test_layers_that_are_not_sharded_are_taken_once(run: Path, tmp_path: Path) -> None:
    assert len(rows_of(tmp_path, "elementwise", "layernorm")) == 1
    assert [r["hidden"] for r in rows_of(tmp_path, "sampling", "sampler")] == [128256]
    assert [r["hidden"] for r in rows_of(tmp_path, "elementwise", "act_fn")] == [14336, 7168]


def test_attention_by_what_is_in_the_batch(run: Path, tmp_path: Path) -> None:
    decode, prefill, mixed = (
        rows_of(tmp_path, f"attention_{kind}")[0] for kind in ("decode", "prefill", "mixed")
    )
    assert (decode["batch"], decode["query_tokens"], decode["context_tokens"]) == (2, 1, 128)
    assert (prefill["batch"], prefill["query_tokens"], prefill["context_tokens"]) == (1, 16, 32)
    assert (mixed["query_lens"], mixed["context_lens"]) == ([16, 1, 1], [32, 128, 128])
    assert (mixed["query_sum"], mixed["context_sum"], mixed["context_max"]) == (18, 288, 128)
    assert mixed["context_sq_sum"] == 32**2 + 2 * 128**2
    assert mixed["duration_s"] == pytest.approx(12e-6)
    assert "query_tokens" not in mixed
    assert [r["kv_heads"] for r in rows_of(tmp_path, "attention_decode")] == [8, 4]


def test_skewed_contexts_are_divided_by_the_iterations(run: Path, tmp_path: Path) -> None:
    row = "mixed,4,1,0.25,4.0,16,32,64,256,112,36,60,45,0.4"
    put(run / "tp1" / "skew.csv", f"{SKEW_HEADER}\n{row}\n")
    mean, biggest, skewed = rows_of(tmp_path, "attention_mixed", SKEW)
    assert mean["context_lens"] == [32, 112, 112, 112, 112]
    assert biggest["context_lens"] == [32, 256, 256, 256, 256]
    assert skewed["context_lens"] == [32, 256, 64, 64, 64]
    times = [r["duration_s"] for r in (mean, biggest, skewed)]
    assert times == pytest.approx([12e-6, 20e-6, 15e-6])


def test_skew_without_a_prefill_is_a_decode(run: Path, tmp_path: Path) -> None:
    row = "pure,2,1,0.5,4.0,0,0,128,512,320,30,33,31.5,0.5"
    put(run / "tp1" / "skew.csv", f"{SKEW_HEADER}\n{row}\n")
    mean, biggest, skewed = rows_of(tmp_path, "attention_decode", SKEW)
    assert (mean["context_tokens"], biggest["context_tokens"]) == (320, 512)
    assert (skewed["query_lens"], skewed["context_lens"]) == ([1, 1], [512, 128])


def test_skew_on_another_scale_is_refused(run: Path, tmp_path: Path) -> None:
    # the batch of attention.csv's first row, 8 us: three iterations would sum to 24 us
    row = "pure,2,1,0.5,4.0,0,0,32,128,80,7,8,7.5,0.5"
    put(run / "tp1" / "skew.csv", f"{SKEW_HEADER}\n{row}\n")
    with pytest.raises(TraceError, match=r"0\.33 times those of attention\.csv .*: another unit"):
        RTX().read(tmp_path, Selection())
    same = row.replace("7,8,7.5", "21,24,22.5")
    put(run / "tp1" / "skew.csv", f"{SKEW_HEADER}\n{same}\n")
    (remark,) = RTX().read(tmp_path, Selection()).remarks
    assert "sums over 3 iterations, divided; then 1.000 times attention.csv" in remark


def test_experts_that_are_active(run: Path, tmp_path: Path) -> None:
    model = "Qwen/Qwen3-30B-A3B-Instruct-2507"
    folder = tmp_path / "RTXPRO6000" / model / "bf16"
    put(folder / "meta.yaml", yaml.safe_dump({**META, "model": model, "tp_degrees": [1]}))
    put(folder / "tp1" / "dense.csv", "layer,tokens,time_us\nqk_norm,1,2\n")
    put(folder / "tp1" / "per_sequence.csv", "layer,sequences,time_us\nsampler,1,10\n")
    attention = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,16,8\n"
    put(folder / "tp1" / "attention.csv", attention)
    put(folder / "tp1" / "moe.csv", "tokens,activated_experts,time_us\n32,64,429\n")
    (row,) = rows_of(tmp_path, "grouped_gemm")
    shape = {
        "tokens": 32, "experts": 128, "local_experts": 128, "active_experts": 64,
        "routed_tokens": 256, "top_k": 8, "hidden": 2048, "inter": 768, "tp": 1, "ep": 1,
    }  # fmt: skip
    assert {name: row[name] for name in shape} == shape
    assert row["duration_s"] == pytest.approx(429e-6)
    only = RTX().read(tmp_path, Selection(gpu="rtx_pro_6000")).table
    assert only["device"].unique().to_pylist() == ["rtx_pro_6000"]


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("tp1/dense.csv", "layer,tokens,time_us\nqkv_prj,8,40\n", "did you mean 'qkv_proj'"),
        ("tp1/dense.csv", "layer,tokens\nqkv_proj,8\n", "column 'time_us' is missing"),
        ("tp1/dense.csv", "layer,tokens,time_us\n", "no row in it"),
        ("tp1/dense.csv", "layer,tokens,time_us\nact_fn,8,fast\n", ":2: time_us is 'fast'"),
        ("tp1/dense.csv", "layer,tokens,time_us\nact_fn,8,inf\n", ":2: time_us is 'inf'"),
        ("meta.yaml", "model: gpt-5\n", "expected the keys model"),
        ("meta.yaml", yaml.safe_dump({**META, "model": "meta-llama/Llama-3-8B"}), "did you mean"),
    ],
)
def test_faults_name_the_file(run: Path, tmp_path: Path, file: str, text: str, fault: str) -> None:
    put(run / file, text)
    with pytest.raises(TraceError) as error:
        RTX().read(tmp_path, Selection())
    assert fault in str(error.value)
    assert file.split("/")[-1] in str(error.value)
