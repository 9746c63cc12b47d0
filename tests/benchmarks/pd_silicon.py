"""Prefill/decode rows of aiconfigurator's silicon sample, predicted from its kernel tables.

    python tests/benchmarks/pd_silicon.py silicon_sample.csv --out out/pd \\
        --kernels h100_sxm profiles/h100 --kernels h200_sxm profiles/h200

The rows of the given GPUs that say how many workers there were. Concurrency is what the
decode batches add up to, a closed loop of ten times as many requests of one length. Batch
sizes and parallel layouts are the row's. Not recorded, and taken as: link 50 GB/s of each pair
of workers, vLLM 0.24's rules and kernels whatever engine ran, no speculative decoding, KV in
16 bits, mean TTFT and TPOT. Nothing is fitted. Where aiconfigurator_core can be imported, its
own estimate from the same tables (a prefill batch alone, a decode batch alone; it knows no
queue) stands beside. A row that has its JSON under --out is not run again.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import yaml
from scipy.stats import kendalltau

from replay.plan import make_plan
from replay.simulate import replay
from traces.errors import FrontierError
from traces.load import load_workload

MODELS = {
    "deepseek-ai/DeepSeek-V3": ("deepseek-v3", None),
    "Qwen/Qwen3-32B": ("qwen3-32b", "fp8"),
    "Qwen/Qwen3-235B-A22B-FP8": ("qwen3-235b-a22b", "fp8"),
}
REQUESTS = 10  # times the concurrency
LINK = {"from": "prefill", "to": "decode", "bandwidth_gb_s": 50, "shared_by": "pair"}
GROUP = ["system", "backend", "model_path", "isl", "osl"]
BAR = 0.6  # Kendall's tau


@click.command()
@click.argument("sample", type=click.Path(path_type=Path))
@click.option("--kernels", nargs=2, multiple=True, required=True, help="GPU and its profile.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(sample: Path, kernels: tuple[tuple[str, str], ...], out: Path) -> None:
    """Predict every row, print the errors."""
    profiles = {gpu: Path(path).absolute() for gpu, path in kernels}
    rows = pd.read_csv(sample, low_memory=False)
    known = (rows["mode"] == "disagg") & rows["decode_num_workers"].notna()
    rows = rows[known & rows["system"].isin(profiles)]
    out.mkdir(parents=True, exist_ok=True)
    found = []
    for number, row in rows.iterrows():
        file = out / f"{number}.json"
        if not file.exists():
            file.write_text(json.dumps(predicted(row, profiles[row["system"]])))
        found.append(json.loads(file.read_text()) | {"row": number})
        click.echo(f"{number}: {found[-1]}", err=True)
    report(rows.join(pd.DataFrame(found).set_index("row")))


def predicted(row: Mapping[str, Any], profile: Path) -> dict[str, Any]:
    """TTFT and TPOT in ms, ours and aiconfigurator's; ``refused`` says why there is none."""
    result: dict[str, Any] = {"peer_ttft": None, "peer_tpot": None, **peer(row)}
    name, quantization = MODELS[row["model_path"]]
    content = {
        "model": f"traces/models/{name}.json",
        "engine_version": "0.24.0",
        "clusters": [cluster(row, role, quantization) for role in ("prefill", "decode")],
        "links": [LINK],
        "operators": str(profile),
    }
    concurrency = concurrency_of(row)
    with tempfile.TemporaryDirectory() as scratch:
        file, work = Path(scratch) / "d.yaml", Path(scratch) / "work.csv"
        file.write_text(yaml.safe_dump(content))
        line = f"0.0,{int(row['isl'])},{int(row['osl'])}\n"
        work.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n"
                        + line * (REQUESTS * concurrency))  # fmt: skip
        try:
            manifest, tables = replay(load_workload(work), make_plan(file), concurrency=concurrency)
        except FrontierError as error:
            return {**result, "refused": str(error)[:300]}
    requests = tables["requests"].to_pandas()
    first, last = requests["first_token_s"], requests["finished_s"]
    steps = manifest.notes["step_time"]
    return {
        **result,
        "ttft": float((first - requests["arrival_s"]).mean() * 1e3),
        "tpot": float(((last - first) / (requests["output_tokens"] - 1)).mean() * 1e3),
        "extrapolated": steps["extrapolated"] / max(1, steps["steps"]),
    }


def cluster(row: Mapping[str, Any], role: str, quantization: str | None) -> dict[str, Any]:
    """One side of the deployment that a row describes."""
    batch = int(row[f"{role}_batch_size"])
    engine = {
        "tensor_parallel_size": int(row[f"{role}_tp_size"]),
        "data_parallel_size": int(row[f"{role}_attention_dp_size"]),
        "enable_expert_parallel": bool(row[f"{role}_moe_ep_size"] > 1),
        "max_model_len": int(row["isl"] + row["osl"]),
        "max_num_seqs": batch,
        "max_num_batched_tokens": int(batch * row["isl"]) if role == "prefill" else 8192,
        "enable_prefix_caching": False,
        "quantization": quantization,
    }
    return {
        "name": role,
        "role": role,
        "replicas": int(row[f"{role}_num_workers"]),
        "hardware": row["system"],
        "engine": engine,
    }


def concurrency_of(row: Mapping[str, Any]) -> int:
    """Requests in flight: what the decode batches add up to (also where the row states it)."""
    names = ("batch_size", "num_workers", "attention_dp_size")
    return int(np.prod([row[f"decode_{name}"] for name in names]))


def gpus(row: Mapping[str, Any]) -> int:
    """GPUs of both sides."""
    names = ("num_workers", "tp_size", "pp_size", "attention_dp_size")
    return sum(int(np.prod([row[f"{r}_{n}"] for n in names])) for r in ("prefill", "decode"))


def peer(row: Mapping[str, Any]) -> dict[str, Any]:
    """aiconfigurator's estimate, from its tables of vLLM."""
    try:
        from aiconfigurator_core.sdk import config, perf_database
        from aiconfigurator_core.sdk.backends.factory import get_backend
        from aiconfigurator_core.sdk.config_builders import build_model_config
        from aiconfigurator_core.sdk.models import get_model
    except ImportError:
        return {}
    system, found = row["system"], {}
    version = perf_database.get_latest_database_version(system, "vllm")
    database = perf_database.get_database(system, "vllm", version)
    block = row["model_path"].startswith("deepseek")
    for role, mode, name in (("prefill", "static_ctx", "ttft"), ("decode", "static_gen", "tpot")):
        sizes = [int(row[f"{role}_{n}"]) for n in ("tp_size", "pp_size", "attention_dp_size")]
        experts = [int(row[f"{role}_moe_{n}_size"]) for n in ("tp", "ep")]
        if not all(experts):  # not recorded: vLLM's without expert parallelism
            experts = [sizes[0] * sizes[2], 1]
        quantised = "fp8_block" if block else "fp8"
        settings = build_model_config(
            *sizes, *experts, gemm_quant_mode=quantised, moe_quant_mode=quantised,
            kvcache_quant_mode="bfloat16", fmha_quant_mode="bfloat16",
        )  # fmt: skip
        asked = config.RuntimeConfig(
            batch_size=int(row[f"{role}_batch_size"]), isl=int(row["isl"]), osl=int(row["osl"])
        )
        try:
            model = get_model(row["model_path"], settings, "vllm")
            summary = get_backend("vllm").run_static(model, database, asked, mode)
            found[f"peer_{name}"] = float(summary.get_summary_df()[name].iloc[0])
        except Exception as error:
            found["peer_refused"] = f"{type(error).__name__}: {str(error)[:200]}"
    return found


def report(rows: pd.DataFrame) -> None:
    """Print errors and ranks."""
    rows = rows.assign(gpus=[gpus(r) for _, r in rows.iterrows()],
                       concurrency=[concurrency_of(r) for _, r in rows.iterrows()])  # fmt: skip
    rows = rows.rename(columns={"silicon_ttft_ms": "real_ttft", "silicon_tpot_ms": "real_tpot"})
    if "refused" in rows:
        for number, why in rows["refused"].dropna().items():
            print(f"row {number} refused: {why}")
    for name, part in [("all rows", rows), *rows.groupby("backend")]:
        print(f"\n{name}: {len(part)} rows, median absolute error")
        for metric in ("tpot", "ttft"):
            cells = []
            for side in ("", "peer_"):
                error = (part[f"{side}{metric}"] / part[f"real_{metric}"] - 1).astype(float)
                cells.append(f"{error.abs().median():7.1%} (median {error.median():+.1%}, "
                             f"n {error.notna().sum()})")  # fmt: skip
            print(f"  {metric.upper()}  ours {cells[0]}   aiconfigurator {cells[1]}")
    print("\nKendall's tau of throughput per GPU, within engine, model and lengths")
    total = {side: [0, 0] for side in ("", "peer_")}
    for key, part in rows.groupby(GROUP):
        real = throughput(part, "real_")
        cells = []
        for side, name in (("", "ours"), ("peer_", "aiconfigurator")):
            ours = throughput(part, side)
            both = ours.notna()
            signs = [
                np.sign(real[i] - real[j]) * np.sign(ours[i] - ours[j])
                for n, i in enumerate(part.index[both]) for j in part.index[both][:n]
            ]  # fmt: skip
            total[side][0] += int(sum(signs))
            total[side][1] += len(signs)
            tau = kendalltau(real[both], ours[both]).statistic if both.sum() > 1 else float("nan")
            cells.append(f"{name} {tau:+.2f}")
        print(f"  {' '.join(map(str, key))}: {len(part)} rows, {', '.join(cells)}")
    for side, name in (("", "ours"), ("peer_", "aiconfigurator")):
        agree, pairs = total[side]
        print(f"all pairs within groups, {name}: {agree / max(1, pairs):+.2f} of {pairs} pairs "
              f"(bar {BAR})")  # fmt: skip


def throughput(rows: pd.DataFrame, side: str) -> pd.Series:
    """Output tokens a second and GPU that TTFT and TPOT amount to in a closed loop."""
    lasts_ms = rows[f"{side}ttft"] + rows["osl"] * rows[f"{side}tpot"]
    result: pd.Series = rows["concurrency"] * rows["osl"] / (lasts_ms / 1e3) / rows["gpus"]
    return result.astype(float)


if __name__ == "__main__":
    main()
