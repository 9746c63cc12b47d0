"""Where the ranks of three MoE deployments spend their time, and what DBO gains: README's table.

    python tests/benchmarks/rank_time.py --kernels profiles/aic-h200 \\
        --trace shared/data/workloads/mooncake_conversation_trace.jsonl.gz [--only deepseek]

A trace's first 800 requests below 32k tokens on H200s, from aiconfigurator's kernels alone:
nothing fitted, and nothing measured to hold it to. Shares are of the time in forwards, over all
ranks; a rank also waits for ranks whose batch takes longer.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from replay.plan import make_plan
from replay.simulate import replay
from reports.console import open_console
from reports.tables import console
from traces.load import load_workload
from traces.workload import Workload, first_requests

REQUESTS, LENGTH = 800, 32768
LOADS = {"expert_load": {"from": "dirichlet", "concentration": 4}}
DEEPSEEK = {
    "data_parallel_size": 32, "enable_expert_parallel": True, "max_num_batched_tokens": 2048,
    "all2all_backend": "deepep_high_throughput",
}  # fmt: skip
DEPLOYMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral 8x7B, TP2": ("mixtral-8x7b", {"tensor_parallel_size": 2}),
    "Qwen3-235B, TP4 x DP2, EP8": (
        "qwen3-235b-a22b",
        {"tensor_parallel_size": 4, "data_parallel_size": 2, "enable_expert_parallel": True},
    ),
    "DeepSeek-V3 (fp8), DP32+EP32, 4 nodes, DeepEP": ("deepseek-v3", DEEPSEEK),
    "the same with enable_dbo": ("deepseek-v3", DEEPSEEK | {"enable_dbo": True}),
}
PARTS = ("layers", "attention", "experts", "straggler", "collectives", "sampling", "overhead")
HEAD = (
    "deployment", *PARTS, "other ranks", "extrapolated", "mean step", "TTFT p50", "TPOT mean",
    "tokens/s/GPU",
)  # fmt: skip


def workload_of(trace: Path) -> Workload:
    """The first requests that fit the models."""
    whole = load_workload(trace)
    table = whole.requests
    total = pc.add(table.column("prompt_tokens"), table.column("output_tokens"))
    return first_requests(replace(whole, requests=table.filter(pc.less(total, LENGTH))), REQUESTS)


def row(name: str, workload: Workload, kernels: Path, scratch: Path) -> list[str]:
    """One deployment's line; raises RuntimeError if it does not finish every request."""
    model, engine = DEPLOYMENTS[name]
    cluster = {"name": "main", "hardware": "h200_sxm", "engine": {"max_model_len": LENGTH} | engine}
    file = scratch / f"{model}.yaml"
    given = {
        "model": f"traces/models/{model}.json", "engine_version": "0.32.0", "moe": LOADS,
        "clusters": [cluster],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(given))
    manifest, tables = replay(workload, make_plan(file, operators=kernels), record=["steps"])
    requests, steps = tables["requests"], tables["steps"]
    if set(requests["status"].to_pylist()) != {"finished"}:
        raise RuntimeError(f"{name}: not every request finished")
    forwards = total(steps, "forward_s") * engine.get("tensor_parallel_size", 1)
    spent = manifest.notes["forward_s"]
    scale = engine.get("tensor_parallel_size", 1)
    shares = [spent.get(part, 0.0) * scale / forwards for part in PARTS]
    arrival, first, end, tokens_out = (
        requests[n].to_numpy()
        for n in ("arrival_s", "first_token_s", "finished_s", "output_tokens")
    )
    several = tokens_out > 1
    tpot = (end - first)[several] / (tokens_out[several] - 1)
    coverage = manifest.notes["step_time"]
    gpus = scale * engine.get("data_parallel_size", 1)
    ended_s = pc.max(steps["end_s"]).as_py() - pc.min(steps["start_s"]).as_py()
    tokens = total(steps, "prefill_tokens") + total(steps, "decode_tokens")
    return [
        name, *(f"{share:.1%}" for share in shares), f"{1 - sum(shares):.1%}",
        f"{coverage['extrapolated'] / coverage['steps']:.1%}",
        f"{1e3 * total(steps, 'forward_s') / len(steps):.1f} ms",
        f"{1e3 * np.median(first - arrival):,.0f} ms",
        f"{1e3 * tpot.mean():.1f} ms",
        f"{tokens / ended_s / gpus:,.0f}",
    ]  # fmt: skip


def total(table: pa.Table, name: str) -> float:
    return float(pc.sum(table.column(name)).as_py())


@click.command()
@click.option("--kernels", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--trace", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--only", default="", help="Deployments whose name contains this.")
def main(kernels: Path, trace: Path, only: str) -> None:
    """Print the table."""
    workload = workload_of(trace)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in DEPLOYMENTS:
            if only.lower() in name.lower():
                rows.append(row(name, workload, kernels, Path(scratch)))
    open_console().print(console(HEAD, rows, labels=1))


if __name__ == "__main__":
    main()
