"""Public traces and others' measurements load whole; skipped where they are not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from traces.bundle import Bundle, read_bundle
from traces.convert import convert
from traces.inspect import prefix_share
from traces.load import load_workload
from traces.metrics import request_metrics
from traces.workload import first_requests

FIXED = "workloads/fixed512x128_q10_r{}_n10000.csv"
RTX = ("rtxpro6000-llama3.1-8b-vllm0.19", "rtx4090-llama3.1-8b-vllm0.19")


@pytest.mark.parametrize(
    ("name", "fmt", "requests"),
    [
        ("workloads/azure_llm_2023_conv.csv.gz", "azure", 19366),
        ("workloads/splitwise_conv.csv.gz", "vidur", 19366),
        ("workloads/mooncake_conversation_trace.jsonl.gz", "mooncake", 12031),
        (FIXED.format(1), "vidur", 10000),
        (FIXED.format(16), "vidur", 10000),
        ("serving/sharegpt-llama-3.1-8b-300.jsonl", "sharegpt", 300),
        ("serving/sharegpt-qwen3-30b-a3b-300.jsonl", "sharegpt", 300),
        (f"serving/{RTX[0]}/requests.jsonl", "engine_stamps", 300),
        ("serving/h100-qwen3-14b-vllm0.23/w7_agg6/trace.csv.gz", "blis", 3623),
    ],
)
def test_whole_files_load(shared: Path, name: str, fmt: str, requests: int) -> None:
    workload = load_workload(shared / name)
    assert workload.source == f"{fmt} {Path(name).name}"
    assert len(workload) == requests
    assert len(first_requests(workload, 100)) == 100
    assert not [note for note in workload.notes if "skipped" in note]


def test_azure_and_splitwise_tell_the_same_trace(shared: Path) -> None:
    azure = load_workload(shared / "workloads/azure_llm_2023_conv.csv.gz").requests
    other = load_workload(shared / "workloads/splitwise_conv.csv.gz").requests
    for name in ("prompt_tokens", "output_tokens"):
        assert azure[name] == other[name]
    gap_s = np.abs(azure["arrival_s"].to_numpy() - other["arrival_s"].to_numpy())
    assert gap_s.max() < 1e-6  # Splitwise kept microseconds


def test_mooncake_shares_prefixes(shared: Path) -> None:
    workload = load_workload(shared / "workloads/mooncake_conversation_trace.jsonl.gz")
    # the paper states 40 % of its blocks as reusable, partial blocks included
    assert 0.3 < prefix_share(workload.requests, 512) < 0.4


@pytest.mark.parametrize("folder", RTX)
def test_engine_stamps_agree_with_the_workload_that_was_sent(shared: Path, folder: str) -> None:
    stamped = load_workload(shared / "serving" / folder / "requests.jsonl").requests
    asked = load_workload(shared / "serving/sharegpt-llama-3.1-8b-300.jsonl").requests
    assert stamped["prompt_tokens"] == asked["prompt_tokens"]
    assert stamped["output_tokens"] == asked["output_tokens"]
    due_s = asked["arrival_s"].to_numpy()
    late_s = stamped["arrival_s"].to_numpy() - due_s
    assert late_s[1:].std() < 0.005  # only the first request was held up


@pytest.mark.parametrize(
    ("name", "vantage", "requests"),
    [
        (f"serving/{RTX[0]}/requests.jsonl", "engine", 300),
        (f"serving/{RTX[1]}/requests.jsonl", "engine", 300),
        ("serving/h100-qwen3-14b-vllm0.23/agg_6rps/vanilla/trace.csv.gz", "client", 3610),
    ],
)
def test_measurements_become_bundles(
    shared: Path, tmp_path: Path, name: str, vantage: str, requests: int
) -> None:
    convert(shared / name, "bundle", tmp_path / "b")
    bundle = read_bundle(tmp_path / "b")
    assert (bundle.manifest.vantage, len(bundle.requests)) == (vantage, requests)
    metrics = request_metrics(bundle)
    for metric in ("ttft", "tpot", "e2e"):
        assert np.all(metrics[metric] > 0)


def test_two_captures_of_equal_arrivals_differ_by_their_noise(shared: Path) -> None:
    root = shared / "serving/h100-qwen3-14b-vllm0.23/agg_2rps"
    one, two = (measured(root / run / "trace.csv.gz") for run in ("patched", "vanilla"))
    prompts = [
        dict(
            zip(*(b.requests[n].to_pylist() for n in ("request_id", "prompt_tokens")), strict=True)
        )
        for b in (one, two)
    ]
    assert prompts[0] == prompts[1]
    means = [request_metrics(b)["tpot"].mean() for b in (one, two)]
    assert abs(means[0] / means[1] - 1) < 0.02


def measured(path: Path) -> Bundle:
    from traces.formats.blis import Blis

    manifest, tables = Blis().read_bundle(path)
    return Bundle(path, manifest, tables)
