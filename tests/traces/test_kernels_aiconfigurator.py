"""aiconfigurator's tables: units, meanings and which rows are taken, on a tree made here."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from traces.check import table_faults
from traces.errors import ConfigError, TraceError
from traces.kernels.aiconfigurator import INSTALLED, PACKAGE, AIConfigurator
from traces.kernels.base import Selection
from traces.schema import KERNELS

H100 = "NVIDIA H100 80GB HBM3"
COMMON = {"framework": "VLLM", "version": "0.24.0", "device": H100, "kernel_source": "some_kernel"}
GEMM = {**COMMON, "gemm_dtype": "bfloat16", "m": 8, "n": 16, "k": 32, "latency": 0.005}
ATTENTION = {
    **COMMON, "batch_size": 4, "isl": 1, "step": 127, "num_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "window_size": 1024, "attn_dtype": "bfloat16", "kv_cache_dtype": "fp8",
    "latency": 0.02,
}  # fmt: skip
A2A = {
    **COMMON, "framework": "vLLM", "comm_backend": "deepep_ll", "phase": "combine",
    "comm_dtype": "default", "ep_size": 8, "node_num": 1, "hidden_size": 7168, "topk": 8,
    "num_experts": 256, "num_tokens": 64, "sms": 20, "latency": 76.2,
}  # fmt: skip
MOE = {
    **COMMON, "moe_dtype": "fp8_block", "num_tokens": 16, "hidden_size": 7168, "inter_size": 2048,
    "topk": 8, "num_experts": 256, "moe_tp_size": 2, "moe_ep_size": 4,
    "distribution": "power_law_1.2", "latency": 0.4,
}  # fmt: skip
ALL_REDUCE = {
    **COMMON, "allreduce_dtype": "bfloat16", "num_gpus": 8, "message_size": 1024,
    "kernel_source": "vLLM_custom_graph", "latency": 0.005,
}  # fmt: skip
NCCL = {
    **COMMON, "framework": "TRTLLM", "version": "2.29.2", "op_name": "alltoall",
    "nccl_dtype": "half", "num_gpus": 4, "message_size": 4096, "latency": 0.0065,
}  # fmt: skip
MLA = {
    **COMMON, "batch_size": 2, "isl": 1, "step": 4096, "num_heads": 128, "tp_size": 1,
    "kv_cache_dtype": "fp8", "mla_dtype": "bfloat16", "gemm_type": "fp8_block", "latency": 0.1,
}  # fmt: skip


def put(root: Path, where: str, *rows: dict[str, Any]) -> None:
    file = root / "data" / f"{where}_perf.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), file)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    h100 = "h100_sxm"
    put(tmp_path, f"{h100}/gemm/vllm/0.24.0/gemm", GEMM, {**GEMM, "m": 1})
    put(tmp_path, f"{h100}/attention/vllm/0.24.0/generation_attention", ATTENTION)
    put(tmp_path, f"{h100}/comm/vllm/0.24.0/moe_a2a", A2A)
    put(tmp_path, f"{h100}/comm/vllm/0.24.0/custom_allreduce", ALL_REDUCE)
    put(tmp_path, f"{h100}/comm/nccl/2.29.2/nccl", NCCL)
    put(tmp_path, f"{h100}/mla/vllm/0.24.0/mla_generation_module", MLA)
    put(tmp_path, f"{h100}/moe/vllm/0.24.0/moe", MOE)
    put(tmp_path, f"{h100}/mhc/vllm/0.24.0/mhc_module", {**COMMON, "latency": 1.0})
    return tmp_path


def rows_of(tree: Path, operator: str, **wanted: str | None) -> list[dict[str, Any]]:
    table = AIConfigurator().read(tree, Selection(**wanted)).table
    assert table_faults(KERNELS, table, "here") == []
    found = table.filter(pc.equal(table["operator"], operator)).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in found]


def test_a_gemm_in_milliseconds(tree: Path) -> None:
    first, second = rows_of(tree, "linear")
    assert first == {
        "operator": "linear", "m": 8, "n": 16, "k": 32, "duration_s": 5e-6, "timing": "kernel",
        "device": "h100_sxm", "engine": "vllm", "engine_version": "0.24.0",
        "backend": "some_kernel", "dtype": "bfloat16",
    }  # fmt: skip
    assert second["m"] == 1


def test_kernels_that_never_beat_their_launch(tree: Path) -> None:
    block = {**GEMM, "gemm_dtype": "fp8_block", "kernel_source": "block_scaled"}
    small, large = {**block, "latency": 0.06}, {**block, "m": 1 << 15, "n": 1 << 13, "k": 1 << 13}
    put(tree, "h100_sxm/gemm/vllm/0.24.0/gemm", {**GEMM, "latency": 0.003}, small, large)
    timing = [(r["backend"], r["timing"]) for r in rows_of(tree, "linear")]
    assert timing == [
        ("some_kernel", "kernel"),
        ("block_scaled", "with_launch"),
        ("block_scaled", "with_launch"),
    ]
    assert AIConfigurator().read(tree, Selection()).remarks == [
        "h100_sxm/gemm/vllm/0.24.0/gemm_perf.parquet: launches bound 2 rows, those of block_scaled"
    ]
    # a table of large shapes alone tells nothing of launches
    put(tree, "h100_sxm/gemm/vllm/0.24.0/gemm", large)
    assert [r["timing"] for r in rows_of(tree, "linear")] == ["kernel"]


def test_decode_attends_to_the_context_before_its_token(tree: Path) -> None:
    (row,) = rows_of(tree, "attention_decode")
    shape = {
        "batch": 4, "query_tokens": 1, "context_tokens": 127, "query_sum": 4, "context_sum": 508,
        "context_sq_sum": 4 * 127**2, "context_max": 127, "heads": 32, "kv_heads": 8,
        "head_dim": 128, "window": 1024, "kv_dtype": "fp8", "dtype": "bfloat16",
    }  # fmt: skip
    assert {name: row[name] for name in shape} == shape


def test_all_to_all_is_in_microseconds(tree: Path) -> None:
    row = next(r for r in rows_of(tree, "all_to_all") if r["engine"] == "vllm")
    assert row["duration_s"] == pytest.approx(76.2e-6)
    assert (row["layer"], row["backend"], row["sms"]) == ("combine", "deepep_ll", 20)
    assert (row["tokens"], row["ranks"], row["nodes"]) == (64, 8, 1)
    assert row["timing"] == "with_launch"


def test_collectives_count_bytes_not_elements(tree: Path) -> None:
    (custom,) = rows_of(tree, "all_reduce")
    assert (custom["bytes"], custom["ranks"], custom["timing"]) == (2048, 8, "kernel")
    nccl = next(r for r in rows_of(tree, "all_to_all") if r["engine"] == "nccl")
    assert (nccl["bytes"], nccl["dtype"], nccl["engine_version"]) == (8192, "float16", "2.29.2")
    assert nccl["timing"] == "with_launch"
    assert custom["node"] == nccl["node"] == "aiconfigurator-h100_sxm"


def test_an_eager_all_reduce_is_timed_with_its_launch(tree: Path) -> None:
    eager = {**ALL_REDUCE, "kernel_source": "vLLM_custom_eager"}
    put(tree, "h100_sxm/comm/vllm/0.24.0/custom_allreduce", ALL_REDUCE, eager)
    assert [r["timing"] for r in rows_of(tree, "all_reduce")] == ["kernel", "with_launch"]


def test_experts_on_the_device(tree: Path) -> None:
    (row,) = rows_of(tree, "grouped_gemm")
    assert (row["experts"], row["local_experts"], row["ep"], row["tp"]) == (256, 64, 4, 2)
    assert (row["inter"], row["load"], row["tokens"]) == (2048, "power_law_1.2", 16)
    assert "routed_tokens" not in row  # not recorded: nothing invented


def test_mla_keeps_the_types_of_weights_attention_and_cache_apart(tree: Path) -> None:
    (row,) = rows_of(tree, "mla_decode")
    assert (row["dtype"], row["attention_dtype"], row["kv_dtype"]) == (
        "fp8_block", "bfloat16", "fp8",
    )  # fmt: skip
    assert row["layer"] == "mla_module"


def test_tables_without_a_family_are_named(tree: Path) -> None:
    reading = AIConfigurator().read(tree, Selection())
    assert reading.left_out == ["h100_sxm/mhc/vllm/0.24.0/mhc_module_perf.parquet"]


def test_the_newest_version_of_each_table_unless_one_is_named(tree: Path) -> None:
    old = {**GEMM, "version": "0.9.0", "latency": 9.0}
    put(tree, "h100_sxm/gemm/vllm/0.9.0/gemm", old)
    assert {r["engine_version"] for r in rows_of(tree, "linear")} == {"0.24.0"}
    (row,) = rows_of(tree, "linear", version="0.9.0")
    assert row["duration_s"] == pytest.approx(9e-3)
    assert len(rows_of(tree, "linear", version="all")) == 3
    assert rows_of(tree, "all_to_all", version="0.9.0")[0]["engine"] == "nccl"


def test_a_row_copied_from_another_version_keeps_its_own(tree: Path) -> None:
    put(tree, "h100_sxm/gemm/vllm/0.25.0/gemm", {**GEMM, "version": "0.14.0"})
    assert [r["engine_version"] for r in rows_of(tree, "linear")] == ["0.14.0"]


def test_rows_of_another_gpu_or_engine_are_dropped_and_counted(tree: Path) -> None:
    foreign = [{**GEMM, "device": "NVIDIA H200"}, {**GEMM, "framework": "TRTLLM"}]
    put(tree, "h100_sxm/gemm/vllm/0.24.0/gemm", GEMM, *foreign)
    reading = AIConfigurator().read(tree, Selection())
    assert reading.dropped == {
        "h100_sxm/gemm/vllm/0.24.0: measured on another GPU": 1,
        "h100_sxm/gemm/vllm/0.24.0: measured on another engine": 1,
    }
    assert len(rows_of(tree, "linear")) == 1


def test_gb200_is_not_b200(tree: Path) -> None:
    put(tree, "b200_sxm/gemm/vllm/0.24.0/gemm", {**GEMM, "device": "NVIDIA GB200"})
    assert rows_of(tree, "linear", gpu="b200_sxm") == []


def test_deepep_rows_hold_a_dispatch_and_a_combine(tree: Path) -> None:
    shape = {"node_num": 2, "hidden_size": 7168, "num_token": 8, "num_topk": 8, "num_experts": 256}
    sglang = {**COMMON, **shape, "framework": "sglang", "version": "0.5.12"}
    normal = {
        **sglang, "dispatch_sms": 12, "combine_sms": 24, "dispatch_transmit_us": 30.0,
        "dispatch_notify_us": 5.0, "combine_transmit_us": 50.0, "combine_notify_us": 0.0,
    }  # fmt: skip
    quick = {**sglang, "dispatch_avg_t_us": 15.0, "combine_avg_t_us": 25.0}
    put(tree, "h100_sxm/comm/sglang/0.5.12/wideep_deepep_normal", normal)
    put(tree, "h100_sxm/comm/sglang/0.5.12/wideep_deepep_ll", quick)
    rows = [r for r in rows_of(tree, "all_to_all", engine="sglang") if r["engine"] == "sglang"]
    found = {
        (r["backend"], r["layer"]): (r["duration_s"], r.get("sms"), r["dtype"], r["timing"])
        for r in rows
    }
    assert found == {
        ("deepep_normal", "dispatch"): (pytest.approx(35e-6), 12, "default", "with_launch"),
        ("deepep_normal", "combine"): (pytest.approx(50e-6), 24, "default", "with_launch"),
        ("deepep_low_latency", "dispatch"): (pytest.approx(15e-6), None, "fp8", "kernel"),
        ("deepep_low_latency", "combine"): (pytest.approx(25e-6), None, "bfloat16", "kernel"),
    }
    assert {(r["ranks"], r["nodes"]) for r in rows} == {(16, 2)}


def test_a_wheel_and_its_directory_read_alike(tree: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "aiconfigurator_core-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in sorted((tree / "data").rglob("*.parquet")):
            archive.write(file, f"{PACKAGE}/systems/{file.relative_to(tree)}")
    packed, loose = (AIConfigurator().read(p, Selection()) for p in (wheel, tree))
    assert packed.table.equals(loose.table)
    assert packed.files == [wheel]
    assert len(loose.files) == 7


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"gpu": "h100"}, "no GPU 'h100'; did you mean 'h100_sxm'?"),
        ({"engine": "vlm"}, "no engine 'vlm'; did you mean 'vllm'?"),
        ({"version": "0.24"}, "no vllm 0.24; did you mean '0.24.0'?"),
    ],
)
def test_an_unknown_choice_names_the_nearest(tree: Path, wanted: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        AIConfigurator().read(tree, Selection(**wanted))
    assert text in str(error.value)


def test_a_table_that_lacks_a_column_is_refused(tree: Path) -> None:
    put(tree, "h100_sxm/gemm/vllm/0.24.0/gemm", {k: v for k, v in GEMM.items() if k != "n"})
    with pytest.raises(TraceError, match=r"gemm_perf\.parquet: column 'n' is missing"):
        AIConfigurator().read(tree, Selection())


def test_a_place_without_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no wheel")
    for path, text in (
        (tmp_path, "no kernel tables of aiconfigurator-core in it"),
        (tmp_path / "notes.txt", "neither a directory nor a wheel"),
        (tmp_path / "gone", "no such file or directory"),
    ):
        with pytest.raises(TraceError, match=text):
            AIConfigurator().read(path, Selection())


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="aiconfigurator-core is not installed"
)
@pytest.mark.parametrize("gpu", ["h100_sxm", "h200_sxm", "b200_sxm"])
def test_the_installed_package(gpu: str) -> None:
    reading = AIConfigurator().read(Path(INSTALLED), Selection(gpu=gpu))
    table = reading.table
    assert table_faults(KERNELS, table, gpu) == []
    counts = table["operator"].value_counts().to_pylist()
    rows = {count["values"]: count["counts"] for count in counts}
    least = {
        "linear": 100_000, "attention_prefill": 49_000, "attention_decode": 60_000,
        "grouped_gemm": 49_000, "mla_prefill": 3_000, "mla_decode": 5_000, "all_reduce": 200,
        "all_to_all": 400, "all_gather": 100, "reduce_scatter": 100,
    }  # fmt: skip
    assert all(rows[name] >= few for name, few in least.items())
    duration_s = table["duration_s"].to_numpy()
    assert duration_s.min() > 1e-6
    assert np.median(duration_s) < 1e-2
    assert duration_s.max() < 1
