"""Frontier's profiles: medians in ms, lengths of requests, loads of experts, launches or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from traces.check import table_faults
from traces.errors import TraceError
from traces.kernels.base import Reading, Selection
from traces.kernels.frontier import Frontier
from traces.schema import KERNELS

Row = dict[str, Any]

HEADS = {
    "n_embd": 4096, "n_q_head": 32, "n_kv_head": 4, "num_tensor_parallel_workers": 2,
    "attention_backend": "FLASHINFER", "profiling_precision": "BF16",
    "measurement_type": "KERNEL_ONLY",
}  # fmt: skip
DECODE = {**HEADS, "batch_size": 2, "prefill_chunk_size": 0, "kv_cache_size": 96,
          "is_prefill": False, "mode": "even", "seq_lens": "[1, 1]"}  # fmt: skip
PREFILL = {**HEADS, "batch_size": 1, "prefill_chunk_size": 64, "kv_cache_size": 32,
           "is_prefill": True, "mode": "even", "seq_lens": "[64]"}  # fmt: skip
LINEAR = {
    "num_tokens": 128, "n_head": 32, "n_kv_head": 4, "n_embd": 4096, "n_expanded_embd": 1024,
    "vocab_size": 32000, "num_tensor_parallel_workers": 2, "use_qk_norm": False,
    "attn_output_gate": False, "measurement_type": "CUDA_EVENT", "profiling_precision": "BF16",
    "quant_signature": "none",
}  # fmt: skip
MOE = {
    "num_tokens": 16, "num_experts": 16, "num_experts_per_device": 2, "expert_parallel_size": 8,
    "router_topk": 8, "hidden_dim": 2048, "expert_hidden_dim": 768,
    "num_tensor_parallel_workers": 1, "total_routed_tokens": 17, "tokens_per_expert_avg": 8.5,
    "expert_utilization": 1.0, "max_load_ratio": 1.0588235294117647, "load_imbalance_cv": 0.0588,
    "load_distribution": "uniform", "routing_runtime_path": "uniform_topk",
    "gating_runtime_context": "prefill_hot", "moe_grouped_gemm_backend": "vllm_fused",
    "measurement_type": "KERNEL_ONLY", "profiling_precision": "BF16",
}  # fmt: skip


def timed(row: Row, std_ms: float = 0.001, **medians_ms: float) -> Row:
    """A row with the median and standard deviation of each operation."""
    stats = {}
    for name, median in medians_ms.items():
        stats[f"time_stats.{name}.median"] = median
        stats[f"time_stats.{name}.std"] = std_ms
    return {**row, **stats}


def put(root: Path, where: str, *rows: Row) -> None:
    file = root / where
    file.parent.mkdir(parents=True, exist_ok=True)
    names = sorted({name for row in rows for name in row})
    cells = [[str(row.get(n, "")) for n in names] for row in rows]
    quoted = [",".join(f'"{c}"' if "," in c else c for c in row) for row in cells]
    file.write_text("\n".join([",".join(names), *quoted]) + "\n")


def read(root: Path) -> Reading:
    reading = Frontier().read(root, Selection())
    assert table_faults(KERNELS, reading.table, "here") == []
    return reading


def rows_of(root: Path, operator: str) -> list[Row]:
    table = read(root).table
    found = table.filter(pc.equal(table["operator"], operator)).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in found]


def attention(row: Row, prefill: float, decode: float, reshape: float = 0.0) -> Row:
    return timed(
        row, attn_prefill=prefill, attn_decode=decode, attn_kv_cache_save=0.002,
        attn_input_reshape=reshape,
    )  # fmt: skip


def test_a_decode_on_one_rank(tmp_path: Path) -> None:
    put(tmp_path, "h800/some/attention_kernel_only.csv", attention(DECODE, 0.0, 0.0075))
    (row,) = rows_of(tmp_path, "attention_decode")
    assert row == {
        "operator": "attention_decode", "batch": 2, "query_tokens": 1, "context_tokens": 96,
        "query_sum": 2, "context_sum": 192, "context_sq_sum": 2 * 96**2, "context_max": 96,
        "heads": 16, "kv_heads": 2, "head_dim": 128, "window": 0, "kv_dtype": "bfloat16",
        "duration_s": pytest.approx(7.5e-6), "std_s": pytest.approx(1e-6), "timing": "kernel",
        "device": "h800_sxm", "engine": "frontier", "engine_version": "unrecorded",
        "backend": "flashinfer", "dtype": "bfloat16",
    }  # fmt: skip
    assert rows_of(tmp_path, "attention_prefill") == []


def test_a_chunk_of_a_prefill_and_its_kv_write(tmp_path: Path) -> None:
    put(tmp_path, "h800/some/attention_kernel_only.csv", attention(PREFILL, 0.0101, 0.0))
    (row,) = rows_of(tmp_path, "attention_prefill")
    assert (row["batch"], row["query_tokens"], row["context_tokens"]) == (1, 64, 32)
    (write,) = rows_of(tmp_path, "elementwise")
    assert (write["layer"], write["tokens"], write["hidden"]) == ("kv_cache_save", 64, 512)


def test_prefills_of_several_lengths_are_listed(tmp_path: Path) -> None:
    several = {**PREFILL, "batch_size": 2, "prefill_chunk_size": 0, "kv_cache_size": 128,
               "mode": "random", "seq_lens": "[12, 13]"}  # fmt: skip
    put(tmp_path, "a800/some/attention.csv", attention(several, 0.08, 0.0))
    (row,) = rows_of(tmp_path, "attention_prefill")
    assert (row["query_lens"], row["context_lens"]) == ([12, 13], [128, 128])
    assert (row["query_sum"], row["context_sum"]) == (25, 256)
    equal = {**several, "seq_lens": "[12, 12]"}
    put(tmp_path, "a800/some/attention.csv", attention(equal, 0.08, 0.0))
    (row,) = rows_of(tmp_path, "attention_prefill")
    assert (row["batch"], row["query_tokens"], row["context_tokens"]) == (2, 12, 128)


def test_a_true_mix_gives_a_prefill_and_a_decode(tmp_path: Path) -> None:
    mixed = {**PREFILL, "batch_size": 3, "prefill_chunk_size": 0, "kv_cache_size": 0,
             "mode": "true_mixed", "seq_lens": "", "prefill_seq_lens": "[32, 16]",
             "prefill_kv_cache_sizes": "[0, 0]", "decode_kv_cache_sizes": "[8]"}  # fmt: skip
    put(tmp_path, "h800/some/attention_kernel_only.csv", attention(mixed, 0.0096, 0.0071))
    (prefill,), (decode,) = (rows_of(tmp_path, f"attention_{k}") for k in ("prefill", "decode"))
    assert (prefill["query_lens"], prefill["duration_s"]) == ([32, 16], pytest.approx(9.6e-6))
    assert (decode["batch"], decode["context_tokens"]) == (1, 8)
    assert decode["duration_s"] == pytest.approx(7.1e-6)
    assert rows_of(tmp_path, "elementwise")[0]["tokens"] == 32 + 16 + 1


def test_a_file_that_mixes_launches_and_kernels_is_told_apart_by_row(tmp_path: Path) -> None:
    claim = {**DECODE, "measurement_type": "CUDA_EVENT"}
    put(
        tmp_path, "a800/some/attention.csv",
        attention(claim, 0.011, 0.072, reshape=0.017), attention(claim, 0.0, 0.0105),
    )  # fmt: skip
    timing = {r["timing"]: r["duration_s"] for r in rows_of(tmp_path, "attention_decode")}
    assert timing == {"with_launch": pytest.approx(72e-6), "kernel": pytest.approx(10.5e-6)}
    assert read(tmp_path).remarks == [
        "a800/some/attention.csv: 1 rows not marked as kernel times are"
    ]


def test_gemms_of_a_rank(tmp_path: Path) -> None:
    row = timed(LINEAR, attn_pre_proj=0.03, attn_post_proj=0.02, mlp_up_proj=0.04,
                mlp_down_proj=0.02, lm_head_linear=0.4, mlp_act=0.03, attn_rope=0.02)  # fmt: skip
    put(tmp_path, "h800/some/linear_op.csv", row)
    gemms = {r["layer"]: (r["m"], r["n"], r["k"]) for r in rows_of(tmp_path, "linear")}
    assert gemms == {
        "attn_pre_proj": (128, (16 + 2 * 2) * 128, 4096),
        "attn_post_proj": (128, 4096, 16 * 128),
        "mlp_up_proj": (128, 1024, 4096),
        "mlp_down_proj": (128, 4096, 512),
        "lm_head_linear": (128, 16000, 4096),
    }
    widths = {r["layer"]: r["hidden"] for r in rows_of(tmp_path, "elementwise")}
    assert widths == {"mlp_act": 512, "attn_rope": (16 + 2) * 128}
    assert {r["timing"] for r in rows_of(tmp_path, "linear")} == {"with_launch"}


def test_a_projection_with_a_norm_in_it_is_no_gemm(tmp_path: Path) -> None:
    row = timed({**LINEAR, "use_qk_norm": True}, attn_pre_proj=0.03, attn_post_proj=0.02)
    put(tmp_path, "h800/some/linear_op.csv", row)
    assert [r["layer"] for r in rows_of(tmp_path, "linear")] == ["attn_post_proj"]


def test_quantised_weights_and_small_layers_that_show_kernels(tmp_path: Path) -> None:
    fp8 = {**LINEAR, "quant_signature": "method=fp8|act=none"}
    slow = {**fp8, "num_tensor_parallel_workers": 4}
    put(
        tmp_path, "h800/some/linear_op.csv",
        timed(fp8, attn_post_proj=0.02, attn_rope=0.003),
        timed({**fp8, "num_tokens": 4096}, attn_post_proj=0.2, attn_rope=0.03),
        timed(slow, attn_post_proj=0.05, attn_rope=0.02),
    )  # fmt: skip
    found = [(r["k"], r["dtype"], r["timing"]) for r in rows_of(tmp_path, "linear")]
    # one rope of 3 us tells the rows of its tensor-parallel size, not those of another
    assert found == [
        (2048, "fp8", "kernel"), (2048, "fp8", "kernel"), (1024, "fp8", "with_launch"),
    ]  # fmt: skip
    assert {r["dtype"] for r in rows_of(tmp_path, "elementwise")} == {"bfloat16"}


def test_the_load_of_the_experts(tmp_path: Path) -> None:
    row = timed(MOE, moe_grouped_gemm=0.021, moe_gating_linear=0.005)
    put(tmp_path, "h800/some/moe_kernel_only.csv", row)
    (gemm,) = rows_of(tmp_path, "grouped_gemm")
    shape = {
        "tokens": 16, "experts": 16, "local_experts": 2, "active_experts": 2,
        "routed_tokens": 17, "max_tokens": 9, "top_k": 8, "hidden": 2048, "inter": 768, "tp": 1,
        "ep": 8, "load": "uniform", "load_cv": 0.0588, "backend": "vllm_fused",
    }  # fmt: skip
    assert {name: gemm[name] for name in shape} == shape
    (router,) = rows_of(tmp_path, "router")
    assert (router["layer"], router["tokens"]) == ("moe_gating_linear", 16)
    assert router["backend"] == "uniform_topk/prefill_hot"


def test_repeats_stay_and_copies_go(tmp_path: Path) -> None:
    row = timed(MOE, moe_grouped_gemm=0.021, moe_gating_linear=0.005)
    again = {**row, "time_stats.moe_grouped_gemm.median": 0.0213}
    relabelled = {**row, "routing_runtime_path": "standard_fused_topk"}
    put(tmp_path, "h800/some/moe_kernel_only.csv", row, again, relabelled)
    times = sorted(r["duration_s"] for r in rows_of(tmp_path, "grouped_gemm"))
    assert times == pytest.approx([21e-6, 21.3e-6])
    assert read(tmp_path).dropped == {"h800/some/moe_kernel_only.csv: copies of another row": 1}
    assert len(rows_of(tmp_path, "router")) == 3


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seq_lens": "[1, x]"}, ":2: seq_lens is '[1, x]': expected a list of lengths"),
        ({"batch_size": "many"}, ":2: batch_size is 'many': expected a number"),
        ({"seq_lens": "[1, 2]"}, ":2: 2 query lengths for 1 requests"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, change: Row, fault: str) -> None:
    put(tmp_path, "h800/some/attention.csv", attention({**PREFILL, **change}, 0.01, 0.0))
    with pytest.raises(TraceError) as error:
        Frontier().read(tmp_path, Selection())
    assert fault in str(error.value)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no <gpu>/<model>"):
        Frontier().read(tmp_path, Selection())
