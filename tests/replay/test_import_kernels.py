"""frontier import-kernels: what it writes, refuses and says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result

from replay.cli import main
from replay.kernel_rates import rates
from simulator.hardware import load_hardware
from traces.bundle import Manifest, write_bundle
from traces.check import table_faults
from traces.kernels import SOURCES
from traces.kernels.base import kernel_rows
from traces.schema import KERNELS

KEYS = {
    "timing": "kernel", "device": "h100_sxm", "engine": "vllm", "engine_version": "1",
    "dtype": "bfloat16",
}  # fmt: skip
REQUESTS = pa.table(
    {"request_id": ["a"], "arrival_s": [0.0], "prompt_tokens": [1], "output_tokens": [1]}
)
PEAK = load_hardware("h100_sxm").peak_tflops["bf16"] * 1e12


def gemm(m: int, share_of_peak: float, **changed: Any) -> pa.Table:
    """A large GEMM that ran at a share of the H100's peak."""
    flops = 2.0 * m * 8192 * 8192
    columns = {"operator": "linear", "m": m, "n": 8192, "k": 8192}
    return kernel_rows(
        {**KEYS, **columns, "duration_s": flops / PEAK / share_of_peak, **changed}, 1
    )


def bundle(path: Path, *rows: pa.Table) -> Path:
    tables = {"requests": REQUESTS, "kernels": pa.concat_tables(rows)}
    write_bundle(path, Manifest(kind="measured"), tables)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["import-kernels", *map(str, arguments)])


def notes(out: Path) -> dict[str, Any]:
    found = yaml.safe_load((out / "kernels.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_rows_in_order_and_where_they_came_from(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", gemm(2048, 0.5), gemm(1024, 0.5), gemm(1024, 0.4))
    result = run("bundle", source, "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "p" / "kernels.parquet")
    assert table_faults(KERNELS, table, "p") == []
    assert table["m"].to_pylist() == [1024, 1024, 2048]
    assert table["duration_s"].to_pylist() == sorted(table["duration_s"].to_pylist())
    said = notes(tmp_path / "p")
    (entry,) = said["sources"]
    assert (entry["source"], entry["rows"], entry["files"]) == ("bundle", 3, 2)
    assert entry["licence"]
    assert said["repeated_rows"] == 1
    assert said["rows"] == [
        {"operator": "linear", "device": "h100_sxm", "engine": "vllm", "engine_version": "1",
         "timing": "kernel", "rows": 3}
    ]  # fmt: skip
    assert "linear    h100_sxm  vllm 1  kernel     3" in result.output
    assert "50%" in result.output


def test_a_row_above_the_peak_is_refused_and_named(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", *(gemm(m, 0.7) for m in (1024, 2048, 4096)), gemm(8192, 2.0))
    result = run("bundle", source, "--out", tmp_path / "p")
    assert result.exit_code == 0, result.output
    assert pq.read_table(tmp_path / "p" / "kernels.parquet")["m"].to_pylist() == [1024, 2048, 4096]
    (entry,) = notes(tmp_path / "p")["sources"]
    assert entry["refused_above_peak"] == 1
    (text,) = entry["refused"]
    assert "linear m=8192 n=8192 k=8192 bfloat16" in text
    assert "1978.8 TFLOP/s, above the device's peak of 989.4" in text
    assert text in result.output


def test_a_table_in_another_unit_is_refused_whole(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", gemm(512, 700.0), gemm(4096, 700.0))
    result = run("bundle", source, "--out", tmp_path / "p")
    assert result.exit_code == 2
    assert "2 of 2 rows of linear h100_sxm kernel cannot be, as row 0" in result.output
    assert "above the device's peak" in result.output
    assert not (tmp_path / "p").exists()


def test_clocks_may_boost_by_a_tenth(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", gemm(4096, 1.08))
    assert run("bundle", source, "--out", tmp_path / "p").exit_code == 0
    assert notes(tmp_path / "p")["sources"][0]["refused_above_peak"] == 0


def decode(batch: int, kv_dtype: str, dtype: str = "bfloat16") -> dict[str, Any]:
    return {
        **KEYS, "operator": "attention_decode", "batch": batch, "query_tokens": 1,
        "context_tokens": 8191, "query_sum": batch, "heads": 64, "kv_heads": 8, "head_dim": 128,
        "window": 0, "kv_dtype": kv_dtype, "dtype": dtype,
    }  # fmt: skip


def test_memory_counts_beyond_the_cache_only(tmp_path: Path) -> None:
    hardware = load_hardware("h100_sxm")
    bandwidth = hardware.memory_bandwidth_gb_s * 1e9
    read = 128 * 8192 * 8 * 2 * 128 * 2  # bytes of keys and values, 4.3 GB
    for at, beyond in ((0.9, False), (1.2, True)):
        row = kernel_rows({**decode(128, "bfloat16"), "duration_s": read / bandwidth / at}, 1)
        assert rates(row).beyond().tolist() == [beyond]
    # the same rate out of the cache of 50 MB is none of memory's business
    small = kernel_rows({**decode(1, "bfloat16"), "duration_s": read / 128 / bandwidth / 1.2}, 1)
    assert rates(small).beyond().tolist() == [False]
    # and half the bytes are half the rate
    row = kernel_rows({**decode(128, "fp8"), "duration_s": read / bandwidth / 1.2}, 1)
    assert rates(row).beyond().tolist() == [False]


def test_a_link_has_a_peak_too(tmp_path: Path) -> None:
    link = load_hardware("h100_sxm").intra_node.bandwidth_gb_s * 1e9
    size = 1 << 30
    for at, beyond in ((0.9, False), (1.2, True)):
        columns = {"operator": "all_gather", "bytes": size, "ranks": 8, "nodes": 1}
        row = kernel_rows({**KEYS, **columns, "duration_s": size * 7 / 8 / link / at}, 1)
        assert rates(row).beyond().tolist() == [beyond]


def test_a_device_without_a_sheet_is_taken_unchecked_and_said(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", gemm(4096, 50.0, device="tpu_v9"))
    result = run("bundle", source, "--out", tmp_path / "p")
    assert result.exit_code == 0
    assert "rates not checked, no hardware sheet: tpu_v9" in result.output
    assert notes(tmp_path / "p")["sources"][0]["devices_without_sheet"] == ["tpu_v9"]


def test_a_profile_is_added_to_only_when_asked(tmp_path: Path) -> None:
    first = bundle(tmp_path / "a", gemm(1024, 0.5))
    other = bundle(tmp_path / "b", gemm(2048, 0.5, device="h200_sxm"))
    out = tmp_path / "p"
    assert run("bundle", first, "--out", out).exit_code == 0
    refused = run("bundle", other, "--out", out)
    assert refused.exit_code == 2
    assert "exists; --add adds to it" in refused.output
    added = run("bundle", other, "--out", out, "--add")
    assert added.exit_code == 0, added.output
    assert pq.read_table(out / "kernels.parquet")["device"].to_pylist() == ["h100_sxm", "h200_sxm"]
    assert [e["rows"] for e in notes(out)["sources"]] == [1, 1]
    again = run("bundle", other, "--out", out, "--add")
    assert again.exit_code == 2
    assert "holds this import already" in again.output
    (out / "kernels.yaml").write_text("sources: 3\n")
    broken = run("bundle", first, "--out", out, "--add")
    assert broken.exit_code == 2
    assert "not the notes of an earlier import" in broken.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["rtx-vllm0.18", "{b}"], "did you mean 'rtx-vllm0.19'"),
        (["bundle", "{b}", "--gpu", "h200_sxm"], "no row for h200_sxm"),
        (["bundle", "{b}", "--version", "0.24.0"], "--engine and --version choose nothing"),
        (["network", "{b}"], "nor *.out of nccl-tests"),
        (["bundle", "{b}/gone"], "not a bundle"),
    ],
)
def test_what_cannot_be_is_one_clear_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    b = bundle(tmp_path / "b", gemm(1024, 0.5))
    result = run(*(a.format(b=b) for a in arguments), "--out", tmp_path / "p")
    assert result.exit_code == 2
    assert text in result.output
    assert result.output.splitlines()[-1].startswith("frontier: ")


def test_no_time_is_no_measurement(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", gemm(1024, 0.5, duration_s=0.0))
    result = run("bundle", source, "--out", tmp_path / "p")
    assert result.exit_code == 2
    assert "row 0: duration_s must be above 0" in result.output


def test_a_bundle_without_kernels_says_how_to_get_them(tmp_path: Path) -> None:
    write_bundle(tmp_path / "b", Manifest(kind="measured"), {"requests": REQUESTS})
    result = run("bundle", tmp_path / "b", "--out", tmp_path / "p")
    assert result.exit_code == 2
    assert "capture --profile-kernels" in result.output


def test_a_captured_gpu_gets_its_sheet_s_name(tmp_path: Path) -> None:
    source = bundle(tmp_path / "b", gemm(1024, 0.5, device="NVIDIA H200"), gemm(1024, 0.5))
    assert run("bundle", source, "--gpu", "h200_sxm", "--out", tmp_path / "p").exit_code == 0
    rows = pq.read_table(tmp_path / "p" / "kernels.parquet")
    assert rows.column("device").to_pylist() == ["h200_sxm"]


def test_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    source = bundle(
        tmp_path / "b",
        gemm(2048, 0.5),
        gemm(1024, 0.5, device="h200_sxm"),
        gemm(1024, 0.4, engine="x"),
    )
    found = set()
    for seed in ("0", "1", "77"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-m", "replay.cli", "import-kernels", "bundle", source, "--out", out],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        found.add(b"".join((out / f"kernels.{s}").read_bytes() for s in ("parquet", "yaml")))
    assert len(found) == 1


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_source_refuses_a_folder_that_is_not_its_own(name: str, tmp_path: Path) -> None:
    result = run(name, tmp_path, "--out", tmp_path / "p")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("frontier: ")
    assert SOURCES[name].licence
