"""Traces of others through a deployment of four replicas, to the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from traces.bundle import read_bundle
from traces.samples import sample_runs

TRACES = (
    "azure_llm_2023_conv.csv.gz",
    "mooncake_conversation_trace.jsonl.gz",
    "splitwise_conv.csv.gz",
    "fixed512x128_q10_r1_n10000.csv",
    "fixed512x128_q10_r16_n10000.csv",
)


@pytest.mark.parametrize("name", TRACES)
def test_a_thousand_requests_finish(
    name: str,
    shared: Path,
    dense_profile: Path,
    tmp_path: Path,
    frontier: Callable[..., Result],
) -> None:
    engine = {
        "dtype": "bfloat16",
        "max_model_len": 200_000,
        "num_gpu_blocks": 40_000,
        "block_size": 16,
        "async_scheduling": False,
        "enforce_eager": True,
    }
    cluster = {"replicas": 4, "hardware": "cpu", "engine": engine}
    deployment = {
        "model": str(sample_runs("dense-low")[0] / "model.json"),
        "clusters": [cluster],
        "routing": {"policy": "least_loaded"},
        "operators": str(dense_profile),
    }
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(deployment))
    result = frontier(
        "replay", shared / "workloads" / name, "-D", tmp_path / "d.yaml", "--limit", "1000",
        "--out", tmp_path / "b",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    requests = read_bundle(tmp_path / "b").requests
    assert requests.column("status").to_pylist() == ["finished"] * 1000
    assert set(requests.column("replica").to_pylist()) == {0, 1, 2, 3}
    if "mooncake" in name:
        assert sum(requests.column("cached_tokens").to_pylist()) > 0
