"""Deployment files: every refusal word for word, and as one line with exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner

from replay.cli import main
from simulator.deployment import (
    SHIPPED,
    Engine,
    check_layout,
    find_file,
    load_deployment,
    model_of,
    parse_deployment,
)
from traces.bundle import Manifest, write_bundle
from traces.errors import ConfigError

DENSE, MOE = "traces/models/llama-3.1-8b.json", "traces/models/qwen3-30b-a3b.json"
ENGINE_KEYS = ", ".join(sorted(Engine.model_fields))


def deployment(model: str = DENSE, cluster: dict[str, Any] | None = None, **engine: Any) -> Any:
    """The content of a deployment file of one cluster."""
    described = {"hardware": "h100_sxm", "engine": engine} | (cluster or {})
    return {"model": model, "clusters": [described]}


def refused_layout(content: Any) -> str:
    parsed = parse_deployment(content, "d.yaml")
    with pytest.raises(ConfigError) as caught:
        check_layout(parsed, model_of(parsed, SHIPPED))
    return str(caught.value)


def replay(directory: Path, text: str) -> tuple[int, str]:
    """Exit code and error output of ``frontier replay`` under this deployment file."""
    requests = {
        "request_id": ["a"], "arrival_s": [0.0], "prompt_tokens": [8], "output_tokens": [2],
    }  # fmt: skip
    workload, path = directory / "workload", directory / "d.yaml"
    tables = {"requests": pa.table(requests)}
    write_bundle(workload, Manifest(kind="simulated", vantage="client"), tables)
    path.write_text(text)
    arguments = ["replay", workload, "--deployment", path, "--out", directory / "out"]
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert not (directory / "out").exists()
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            deployment(tensor_paralel_size=2),
            "d.yaml: unknown key clusters[0].engine.tensor_paralel_size; did you mean "
            f"'tensor_parallel_size'? (known: {ENGINE_KEYS})",
        ),
        (
            deployment() | {"routng": {}},
            "d.yaml: unknown key routng; did you mean 'routing'? (known: clusters, "
            "engine_version, launch, links, model, moe, operators, pipeline, routing)",
        ),
        (
            deployment(cluster={"role": "prefil"}),
            "d.yaml: clusters[0].role: unknown 'prefil'; did you mean 'prefill'? (known: "
            "attention, colocated, decode, ffn, prefill)",
        ),
        (
            deployment(max_num_seqs=0),
            "d.yaml: clusters[0].engine.max_num_seqs: input should be greater than or equal to "
            "1, got 0",
        ),
        (
            {"model": DENSE, "clusters": []},
            "d.yaml: clusters is empty",
        ),
        ({"clusters": [{}]}, "d.yaml: model is missing"),
        (
            deployment() | {"links": [{"from": "main", "to": "main", "bandwidth": 5}]},
            "d.yaml: links[0].bandwidth_gb_s is missing; d.yaml: unknown key "
            "links[0].bandwidth; did you mean 'bandwidth_gb_s'? (known: bandwidth_gb_s, "
            "contention, from, latency_us, layerwise, lease_renewal, lease_s, setup_us, "
            "shared_by, to, transfer)",
        ),
    ],
)
def test_keys_that_are_wrong(content: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_deployment(content, "d.yaml")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            deployment(tensor_parallel_size=3),
            ".tensor_parallel_size: 3 does not divide the model's 32 attention heads",
        ),
        (
            deployment(MOE, pipeline_parallel_size=64),
            ".pipeline_parallel_size: 64 stages for 48 layers",
        ),
        (
            deployment("traces/models/qwen2.5-7b.json", tensor_parallel_size=28),
            ".tensor_parallel_size: 28 does not divide the model's intermediate_size 18944",
        ),
        (
            deployment("traces/models/qwen2.5-7b.json", tensor_parallel_size=14),
            ".tensor_parallel_size: 14 neither divides nor is a multiple of the model's 4 KV heads",
        ),
        (
            deployment(MOE, data_parallel_size=3, enable_expert_parallel=True),
            ".enable_expert_parallel: 128 experts over 3 ranks do not divide",
        ),
        (
            deployment(MOE, data_parallel_size=256, enable_expert_parallel=True),
            ".enable_expert_parallel: 128 experts over 256 ranks: 128 would hold none",
        ),
        (
            deployment(
                MOE, data_parallel_size=2, enable_expert_parallel=True, enable_eplb=True,
                num_redundant_experts=1,
            ),
            ".enable_expert_parallel: 129 experts over 2 ranks do not divide",
        ),
        (
            deployment(enable_expert_parallel=True),
            ".enable_expert_parallel: the model has no experts",
        ),
        (
            deployment("traces/models/gpt-oss-20b.json", data_parallel_size=7),
            ": 7 ranks (tensor x data parallel) do not divide the experts' intermediate size "
            "2880; enable_expert_parallel splits by expert",
        ),
        (deployment(MOE, enable_eplb=True), ".enable_eplb: needs enable_expert_parallel"),
        (deployment(MOE, num_redundant_experts=8), ".num_redundant_experts: needs enable_eplb"),
        (
            deployment(enable_chunked_prefill=False, max_num_batched_tokens=8192),
            ".max_num_batched_tokens: 8192 is smaller than max_model_len 131072 while "
            "enable_chunked_prefill is false",
        ),
        (
            deployment(max_num_batched_tokens=128),
            ".max_num_batched_tokens: 128 is smaller than max_num_seqs 256",
        ),
        (
            deployment(max_model_len=1024, long_prefill_token_threshold=2048),
            ".long_prefill_token_threshold: 2048 is greater than max_model_len 1024",
        ),
    ],
)  # fmt: skip
def test_layouts_that_vllm_refuses(content: Any, message: str) -> None:
    assert refused_layout(content) == f"clusters[main].engine{message}"


def test_clusters_have_names_of_their_own_and_links_know_them() -> None:
    two = {"model": DENSE, "clusters": [{"name": "a"}, {"name": "a"}]}
    assert refused_layout(two) == "clusters[1].name: 'a' is already taken"
    link = {"from": "prefill", "to": "decod", "bandwidth_gb_s": 50}
    names = [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode"}]
    assert refused_layout({"model": DENSE, "clusters": names, "links": [link]}) == (
        "links[0].to: unknown cluster 'decod'; did you mean 'decode'? (known: decode, prefill)"
    )


@pytest.mark.parametrize(
    "content",
    [
        deployment(tensor_parallel_size=16),  # more ranks than KV heads: they are replicated
        deployment("traces/models/deepseek-v3.json", tensor_parallel_size=32),  # MLA has no heads
        deployment(
            "traces/models/deepseek-v3.json", data_parallel_size=32, enable_expert_parallel=True
        ),
        deployment(enable_chunked_prefill=False, max_model_len=8192),
    ],
)
def test_layouts_that_vllm_takes(content: Any) -> None:
    parsed = parse_deployment(content, "d.yaml")
    check_layout(parsed, model_of(parsed, SHIPPED))


def test_graph_sizes_are_vllm_s_defaults() -> None:
    sizes = Engine(max_num_seqs=128).graph_sizes()
    assert sizes == (1, 2, 4, *range(8, 257, 8))
    assert Engine(max_num_seqs=1024).graph_sizes()[-2:] == (496, 512)
    assert Engine(max_num_seqs=2).graph_sizes() == (1, 2, 4)
    assert Engine(max_num_seqs=100, max_num_batched_tokens=100).graph_sizes()[-2:] == (96, 100)
    given = Engine(cudagraph_capture_sizes=[16, 8, 16, 9000], max_num_batched_tokens=8192)
    assert given.graph_sizes() == (8, 16)


def test_files_are_looked_for_beside_and_among_the_shipped(tmp_path: Path) -> None:
    assert find_file(DENSE, tmp_path) == SHIPPED / DENSE
    own = tmp_path / DENSE
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    assert find_file(DENSE, tmp_path) == own
    with pytest.raises(ConfigError) as caught:
        find_file("traces/models/llama-3-8b.json", tmp_path)
    assert str(caught.value).startswith(
        f"traces/models/llama-3-8b.json: neither in {tmp_path} nor shipped; did you mean "
        "'traces/models/llama-3.1-8b.json'? (known: traces/models/deepseek-v2-lite.json, "
    )
    with pytest.raises(ConfigError) as caught:
        find_file("profiles/mine", tmp_path)
    assert str(caught.value) == f"profiles/mine: neither in {tmp_path} nor shipped"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such deployment file"),
        ("model: [", "not YAML: while parsing a flow"),
        ("just words", "expected keys such as model and clusters"),
    ],
)
def test_faults_of_a_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "d.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_deployment(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (deployment(tensor_paralel_size=2), "did you mean 'tensor_parallel_size'?"),
        (
            deployment() | {"routing": {"policy": "round_robbin"}},
            "routing.policy: unknown 'round_robbin'; did you mean 'round_robin'?",
        ),
        (
            deployment(scheduling_policy="fifo"),
            "scheduling_policy: unknown 'fifo'",
        ),
        (deployment(tensor_parallel_size=3), "3 does not divide the model's 32 attention heads"),
        (
            deployment(MOE, data_parallel_size=3, enable_expert_parallel=True),
            "128 experts over 3 ranks do not divide",
        ),
        (
            deployment("traces/models/llama-3.1-70b.json"),
            "the weights do not fit: 141.1 GB a rank, 78.2 GB granted, 62.9 GB too much",
        ),
        (deployment(gpu_memory_utilization=0.2), "no KV block fits: 17.0 GB granted"),
        (
            deployment(enable_chunked_prefill=False),
            "8192 is smaller than max_model_len 131072 while enable_chunked_prefill is false",
        ),
        (deployment("traces/models/llama-3-8b.json"), "did you mean"),
        (deployment(cluster={"hardware": "h100"}), "hardware: unknown 'h100'; did you mean"),
        ("model: [", "not YAML"),
    ],
)
def test_the_command_line_says_it_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    code, error = replay(tmp_path, content if isinstance(content, str) else yaml.dump(content))
    assert code == 2
    assert error.startswith("frontier: ")
    assert error.count("\n") == 1
    assert message in error
