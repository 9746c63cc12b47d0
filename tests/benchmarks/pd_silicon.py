"""Real prefill/decode clusters of H100 and H200, predicted from kernel tables, beside a peer.

    python tests/benchmarks/pd_silicon.py aiconfigurator_core-*.whl --h100 profiles/aic-h100 \\
        --h200 profiles/aic-h200 --out out/pd [--only h200_sxm]

The rows of ``silicon_sample.csv`` that give worker counts, each simulated as a closed loop of its
concurrency, prompts and answers of its lengths, ten times as many requests as it has in flight; a
row found in an earlier run is not simulated again.
Beside them aiconfigurator-core's engine: one prompt through a prefill worker, the mean decode
step of a full decode worker. Nothing is fitted. A row that cannot be predicted is named.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import yaml
from scipy.stats import kendalltau

from replay.plan import make_plan
from replay.simulate import replay
from simulator.deployment import SHIPPED
from traces.bundle import Bundle
from traces.errors import ConfigError
from traces.metrics import request_metrics
from traces.workload import make_workload

ROWS = "aiconfigurator_core/systems/silicon_sample.csv"
GPUS = ("h100_sxm", "h200_sxm")
MODELS = {  # the sample's names -> configs beside the simulator
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "Qwen/Qwen3-32B": "qwen3-32b",
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b",
}
BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
          "weight_block_size": [128, 128]}  # fmt: skip
ENGINE = {"max_num_seqs": 512, "max_model_len": 16384, "enable_prefix_caching": False}
REQUESTS = 10  # for each in flight
LEAST_TAU = 0.6
METRICS = ("ttft", "tpot")


@dataclass(slots=True)
class Row:
    """A measured deployment under load; seconds by metric, NaN where a predictor refuses."""

    cells: dict[str, str]
    ours: dict[str, float] = field(default_factory=dict)
    peer: dict[str, float] = field(default_factory=dict)
    refused: str = ""

    def number(self, key: str) -> int:
        """A whole number of the row."""
        return int(self.cells[key])

    @property
    def measured(self) -> dict[str, float]:
        """Seconds."""
        return {m: float(self.cells[f"silicon_{m}_ms"]) / 1e3 for m in METRICS}

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a prompt and of an answer."""
        return self.number("isl"), self.number("osl")

    @property
    def concurrency(self) -> int:
        """Requests in flight: recorded, else what the decode workers are said to hold."""
        found = re.search(r"silicon_concurrency=(\d+)", self.cells["silicon_data_source"])
        names = ("num_workers", "batch_size", "attention_dp_size")
        slots = [self.number(f"decode_{name}") for name in names]
        return int(found[1]) if found else int(np.prod(slots))

    def gpus(self, side: str) -> int:
        """GPUs of a side."""
        names = ("num_workers", "tp_size", "pp_size", "attention_dp_size")
        return int(np.prod([self.number(f"{side}_{name}") for name in names]))

    @property
    def group(self) -> tuple[str, str, str]:
        """Rows whose throughputs are compared."""
        isl, osl = self.lengths
        return self.cells["backend"], self.cells["model_path"].split("/")[-1], f"{isl}/{osl}"

    def throughput(self, times: dict[str, float]) -> float:
        """Tokens a second and GPU: C * osl / (ttft + osl * tpot) / GPUs."""
        osl = self.number("osl")
        tokens_s = self.concurrency * osl / (times["ttft"] + osl * times["tpot"])
        return tokens_s / (self.gpus("prefill") + self.gpus("decode"))

    @property
    def layout(self) -> str:
        """The workers in short."""
        sides = []
        for side in ("prefill", "decode"):
            tp, dp, ep = (self.number(f"{side}_{n}_size") for n in ("tp", "attention_dp", "moe_ep"))
            ranks = f"tp{tp}" * (tp > 1 or dp == 1) + f"dp{dp}" * (dp > 1) + "ep" * (ep > 1)
            sides.append(f"{self.number(f'{side}_num_workers')} {ranks}")
        return " + ".join(sides)


def read_rows(wheel: Path) -> list[Row]:
    """The rows of H100 and H200 that give worker counts."""
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(ROWS).decode()
    found = csv.DictReader(io.StringIO(text))
    return [Row(r) for r in found if r["system"] in GPUS and r["prefill_num_workers"]]


def deployment_file(row: Row, to: Path) -> Path:
    """The deployment of a row; what it does not say is vLLM's default."""
    cells = row.cells
    model = json.loads((SHIPPED / f"traces/models/{MODELS[cells['model_path']]}.json").read_text())
    blocks = cells["gemm_quant_mode"] == "fp8_block" or cells["model_path"].endswith("FP8")
    if blocks:
        model.setdefault("quantization_config", BLOCKS)
    to.mkdir(parents=True, exist_ok=True)
    (to / "model.json").write_text(json.dumps(model))
    clusters = []
    for side in ("prefill", "decode"):
        engine = {
            "tensor_parallel_size": row.number(f"{side}_tp_size"),
            "data_parallel_size": row.number(f"{side}_attention_dp_size"),
            "enable_expert_parallel": row.number(f"{side}_moe_ep_size") > 1,
            **ENGINE,
        }
        if "quantization_config" not in model:
            engine["quantization"] = "fp8"
        clusters.append({
            "name": side, "role": side, "replicas": row.number(f"{side}_num_workers"),
            "hardware": cells["system"], "engine": engine,
        })  # fmt: skip
    content = {
        "model": "model.json", "engine_version": "0.32.0", "clusters": clusters,
        # an InfiniBand port of 400 Gbit/s for each GPU
        "links": [{"from": "prefill", "to": "decode", "bandwidth_gb_s": 50, "latency_us": 5,
                   "shared_by": "pair"}],
    }  # fmt: skip
    file = to / "deployment.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def simulate(row: Row, profile: Path, to: Path) -> dict[str, float]:
    """Mean TTFT and TPOT, seconds. Raises ConfigError where no table has the row's kernels."""
    plan = make_plan(deployment_file(row, to), operators=profile)
    isl, osl = row.lengths
    count = REQUESTS * row.concurrency
    columns = {
        "arrival_s": np.zeros(count),
        "prompt_tokens": np.full(count, isl),
        "output_tokens": np.full(count, osl),
    }
    work = make_workload(columns, "equal lengths")
    manifest, tables = replay(work, plan, concurrency=row.concurrency, say=say)
    values = request_metrics(Bundle(to, manifest, tables))
    return {m: float(np.mean(values[m])) for m in METRICS}


def kept(home: Path, row: Row, profile: Path) -> dict[str, float]:
    """What ``simulate`` found, also in an earlier run."""
    file = home / "found.json"
    if not file.is_file():
        file.write_text(json.dumps(simulate(row, profile, home)))
    found: dict[str, float] = json.loads(file.read_text())
    return found


class Peer:
    """aiconfigurator-core's engine, from the wheel, on the tables of the row's own engine."""

    def __init__(self, wheel: Path, to: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(to)
        logging.disable(logging.WARNING)
        sys.path.insert(0, str(to))

    def times(self, row: Row) -> dict[str, float]:
        """Seconds of one prompt alone, and of the mean step of a full decode worker."""
        return {"ttft": self._run(row, "prefill", "static_ctx")["ttft"],
                "tpot": self._run(row, "decode", "static_gen")["tpot"]}  # fmt: skip

    def _run(self, row: Row, side: str, mode: str) -> dict[str, float]:
        from aiconfigurator_core.sdk import config, models, perf_database
        from aiconfigurator_core.sdk.backends import factory
        from aiconfigurator_core.sdk.config_builders import build_model_config

        cells, (isl, osl) = row.cells, row.lengths
        names = ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
        layout = {name: row.number(f"{side}_{name}") for name in names}
        if not layout["moe_ep_size"]:  # not recorded: vLLM's, without expert parallelism
            ranks = layout["tp_size"] * layout["attention_dp_size"]
            layout |= {"moe_tp_size": ranks, "moe_ep_size": 1}
        backend = cells["backend"]
        database = perf_database.get_database(cells["system"], backend, "current")
        batch = row.number(f"{side}_batch_size")
        asked = config.RuntimeConfig(batch_size=batch, isl=isl, osl=osl)
        modes = {name: cells[name] for name in ("gemm_quant_mode", "moe_quant_mode")}
        modes |= {"kvcache_quant_mode": "bfloat16", "fmha_quant_mode": "bfloat16"}  # as ours
        shape = build_model_config(**layout, **modes)
        model = models.get_model(cells["model_path"], shape, backend)
        engine = factory.get_backend(backend)
        summary = engine.run_static(model, database, asked, mode).get_summary_df().iloc[0]
        return {metric: float(summary[metric]) / 1e3 for metric in METRICS}


def say(text: str) -> None:
    click.echo(text, err=True)


def errors(rows: Sequence[Row], of: str, metric: str) -> np.ndarray:
    """Signed relative errors of one predictor."""
    return np.array([getattr(r, of)[metric] / r.measured[metric] - 1 for r in rows])


def show(rows: Sequence[Row]) -> bool:
    """Print the tables; whether every group is ordered as the bar asks."""
    click.echo("| GPU | engine | model | lengths | workers | C | TTFT s | ours | aic "
               "| TPOT ms | ours | aic | tok/s/GPU | ours | aic |")  # fmt: skip
    click.echo("| --- " * 15 + "|")
    for r in rows:
        cells = [r.cells["system"], *r.group, r.layout, r.concurrency]
        for metric, unit in (("ttft", 1), ("tpot", 1e3)):
            cells.append(f"{r.measured[metric] * unit:.2f}")
            cells += [f"{e:+.0%}" for e in (errors([r], of, metric)[0] for of in ("ours", "peer"))]
        cells += [f"{r.throughput(t):.0f}" for t in (r.measured, r.ours, r.peer)]
        click.echo(f"| {' | '.join(map(str, cells))} |")
    click.echo()
    for metric in METRICS:
        found = {of: np.abs(errors(rows, of, metric)) for of in ("ours", "peer")}
        click.echo(f"{metric.upper()}: median absolute error " + ", aiconfigurator ".join(
            f"{np.nanmedian(e):.1%} ({np.isfinite(e).sum()} rows)" for e in found.values()
        ))  # fmt: skip
    good = True
    for group in dict.fromkeys(r.group for r in rows):
        own = [r for r in rows if r.group == group]
        if len(own) < 2:
            click.echo(f"{' '.join(group)}: one row, nothing to order")
            continue
        real = [r.throughput(r.measured) for r in own]
        taus = [kendalltau(real, [r.throughput(getattr(r, of)) for r in own]).statistic
                for of in ("ours", "peer")]  # fmt: skip
        good &= taus[0] >= LEAST_TAU
        click.echo(f"{' '.join(group)}: Kendall's tau of tokens/s/GPU {taus[0]:.2f} "
                   f"({LEAST_TAU}){'!' * bool(taus[0] < LEAST_TAU)}, aiconfigurator {taus[1]:.2f} "
                   f"({len(own)} rows)")  # fmt: skip
    return good


@click.command(help=__doc__)
@click.argument("wheel", type=click.Path(path_type=Path, exists=True))
@click.option("--h100", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--h200", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--only", help="Rows whose id holds this.")
def main(wheel: Path, h100: Path, h200: Path, out: Path, only: str | None) -> None:
    rows = [r for r in read_rows(wheel) if only is None or only in r.cells["id"]]
    profiles = {"h100_sxm": h100, "h200_sxm": h200}
    for gpu, source in profiles.items():
        if not (out / "profiles" / gpu).is_dir():
            shutil.copytree(source, out / "profiles" / gpu)
    shown: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(wheel, Path(folder))
        for i, row in enumerate(rows):
            gpu = row.cells["system"]
            say(f"{i + 1} of {len(rows)}: {row.cells['id']}")
            home = out / "rows" / row.cells["id"]
            try:
                row.ours = kept(home, row, out / "profiles" / gpu)
            except ConfigError as error:
                click.echo(f"not predicted: {row.cells['id']}: {error}")
                continue
            try:
                row.peer = peer.times(row)
            except Exception as error:  # its refusals are of many kinds
                row.peer = dict.fromkeys(METRICS, np.nan)
                click.echo(f"refused by aiconfigurator: {row.cells['id']}: {error}")
            shown.append(row)
    sys.exit(0 if shown and show(shown) else 1)


if __name__ == "__main__":
    main()
