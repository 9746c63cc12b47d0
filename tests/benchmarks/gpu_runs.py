"""Real GPU deployments predicted from kernel tables: one table, ours beside the bars and a peer.

    python tests/benchmarks/gpu_runs.py --data shared/data/serving --rtx profiles/rtx \\
        --h100 profiles/aic-h100 --h200 profiles/aic-h200 --out out/gpu [--only rtx] [--fit]

Each run is replayed from the tables alone; ``--fit`` adds the constants that a bar allows, found
on the part of the data that the bar does not judge. Runs whose data or profile is not there are
named and left out. Errors are signed percent of mean / p50 / p90 / p99, beyond a bar with a "!".
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from replay.fit_overhead import CONSTANTS, SAID, fit_overhead, overhead_table
from replay.plan import load_step_time, make_plan
from replay.simulate import replay
from simulator.step_time.base import BatchShape
from traces.bundle import Bundle, Manifest, read_bundle, write_bundle
from traces.formats import FORMATS
from traces.load import load_workload
from traces.metrics import Floats, request_metrics
from traces.workload import Workload, make_workload
from validation.errors import ks

Bars = dict[str, tuple[float | None, ...]]  # of mean, p50, p90, p99 (fractions), and of the KS
STATISTICS: tuple[tuple[str, Callable[[Floats], float]], ...] = (
    ("mean", np.mean), *((f"p{p}", lambda v, p=p: np.percentile(v, p)) for p in (50, 90, 99))
)  # fmt: skip
KS = 4
ALL = (0.04,) * 4
RTX_BARS: Bars = {"ttft": (0.06, 0.12, 0.12, 0.12, 0.12), "tpot": ALL, "e2e": ALL}
RTX_FITTED: Bars = {"ttft": (0.05,) * 4, "tpot": (0.02,) * 4, "e2e": (0.02,) * 4}
H100_BARS: Bars = {"ttft": (0.04, None, None, 0.15), "tpot": (0.03,)}
OSS_BARS: Bars = {"ttft": (0.10,), "tpot": (0.05,)}
JUDGED_AFTER = 100  # requests that constants are found on
SAMPLES = 20
# LLMServingSim 2.0 on its own tables, mean TTFT / TPOT / E2EL, as published
PEER = {
    "rtx_pro_6000": "-4.0 / -1.0 / -1.8",
    "rtx_4090": "+0.6 / +0.2 / +0.5",
    "moe": "-13.6 / -1.7 / -2.2",
}
HASHES = "sharegpt-llama-3.1-8b-300.jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: the run, what was fitted, the metric, its errors, the peer's."""

    run: str
    fitted: str
    metric: str
    errors: tuple[str, ...]
    ks: str = ""
    peer: str = ""


@dataclass(slots=True)
class Place:
    """Where data, profiles and what is made of them lie; ``profile`` of a kind may be None."""

    data: Path
    out: Path
    profiles: dict[str, Path | None]
    fit: bool

    def operators(self, kind: str) -> Path:
        """A copy of a profile: baking and fitting write into it."""
        source = self.profiles[kind]
        if source is None:
            raise FileNotFoundError(f"no --{kind} given")
        copy = self.out / "profiles" / kind
        if not copy.is_dir():
            shutil.copytree(source, copy)
        return copy

    def deployment(self, name: str, model: str, hardware: str, version: str, **engine: object,
                   ) -> Path:  # fmt: skip
        """A deployment file."""
        file = self.out / "deployments" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        clusters = [{"name": "main", "hardware": hardware, "engine": engine}]
        content = {"model": f"traces/models/{model}.json", "engine_version": version}
        file.write_text(yaml.safe_dump({**content, "clusters": clusters}))
        return file


def cell(error: float, bar: float | None) -> str:
    """A signed error in percent, its bar, and "!" beyond it."""
    if bar is None:
        return f"{error:+.1%}"
    return f"{error:+.1%} ({bar:.0%}){'!' * bool(abs(error) > bar)}"


def compare(run: str, fitted: str, measured: Bundle, simulated: Bundle, bars: Bars, *,
            after: int = 0, peer: str = "") -> Iterator[Line]:  # fmt: skip
    """A line a metric: requests paired by id, the first ``after`` left out."""
    theirs, ours = request_metrics(measured), request_metrics(simulated)
    ids = simulated.requests.column("request_id").to_pylist()
    at = {name: i for i, name in enumerate(ids)}
    order = np.array([at[name] for name in measured.requests.column("request_id").to_pylist()])
    for metric in ("ttft", "tpot", "e2e"):
        real, other = theirs[metric][after:], ours[metric][order][after:]
        known = np.isfinite(real) & np.isfinite(other)
        real, other = real[known], other[known]
        bar = bars.get(metric, ())
        errors = tuple(
            cell(of(other) / of(real) - 1, bar[i] if i < len(bar) else None)
            for i, (_, of) in enumerate(STATISTICS)
        )
        apart = ks(real, other)
        most = bar[KS] if len(bar) > KS else None
        shown = f"{apart:.2f}" + (f" ({most}){'!' * bool(apart > most)}" if most else "")
        yield Line(run, fitted, metric, errors, shown, peer if metric == "ttft" else "")


def simulate(measured: Path, deployment: Path, operators: Path, out: Path) -> Bundle:
    """The workload of a measured bundle, replayed on a profile of kernels."""
    plan = make_plan(deployment, operators=operators)
    manifest, tables = replay(load_workload(measured), plan, say=say)
    shutil.rmtree(out, ignore_errors=True)
    return write_bundle(out, manifest, tables)


def rtx(place: Place) -> Iterator[Line]:
    """Llama-3.1-8B on one card: the requests with the hashes of their prompts."""
    cards = {
        "rtx_pro_6000": ("rtxpro6000", {"max_num_seqs": 128, "gpu_memory_utilization": 0.9}),
        "rtx_4090": ("rtx4090", {"num_gpu_blocks": 2588, "max_model_len": 32768}),
    }
    for card, (folder, engine) in cards.items():
        operators = place.operators("rtx")
        bundle = place.out / "measured" / card
        source = place.data / f"{folder}-llama3.1-8b-vllm0.19" / "requests.jsonl"
        manifest, tables = FORMATS["engine_stamps"].read_bundle(source)
        hashes = load_workload(place.data / HASHES)
        manifest.hash_block_tokens = hashes.hash_block_tokens
        column = hashes.requests.column("block_hashes")
        tables["requests"] = tables["requests"].append_column("block_hashes", column)
        remake(bundle, manifest, tables)
        deployment = place.deployment(card, "llama-3.1-8b", card, "0.19.0",
                                      max_num_batched_tokens=2048, **engine)  # fmt: skip
        found = simulate(bundle, deployment, operators, place.out / "simulated" / card)
        yield from compare(card, "nothing", read_bundle(bundle), found, RTX_BARS, peer=PEER[card])
        if place.fit:
            fitted = fit(place, bundle, deployment, operators, f"{card}-fitted", JUDGED_AFTER)
            found = simulate(bundle, deployment, fitted, place.out / "simulated" / f"{card}-fitted")
            yield from compare(card, f"2 constants, first {JUDGED_AFTER}", read_bundle(bundle),
                               found, RTX_FITTED, after=JUDGED_AFTER)  # fmt: skip


def h100(place: Place) -> Iterator[Line]:
    """Qwen3-14B on one H100: the client's records at five loads."""
    operators = place.operators("h100")
    root = place.data / "h100-qwen3-14b-vllm0.23"
    deployment = place.deployment("h100", "qwen3-14b", "h100_sxm", "0.23.0",
                                  max_num_batched_tokens=8192, max_num_seqs=256,
                                  num_gpu_blocks=18038)  # fmt: skip
    runs = {f"agg_{n}rps": root / f"agg_{n}rps/vanilla/trace.csv.gz" for n in (2, 4, 6, 8)}
    runs |= {name: root / name / "trace.csv.gz" for name in ("w5_agg6", "w7_agg6")}
    for name, source in runs.items():
        remake(place.out / "measured" / name, *FORMATS["blis"].read_bundle(source))
    profiles = {"nothing": operators}
    if place.fit:
        learnt = place.out / "measured" / "agg_2rps"
        for constant in SAID:
            profiles[f"{constant}, agg_2rps"] = fit(
                place, learnt, deployment, operators, f"h100-{constant}", None, [constant]
            )
    for fitted, profile in profiles.items():
        for name in runs:
            bundle = place.out / "measured" / name
            out = place.out / "simulated" / f"{name}-{profile.name}"
            found = simulate(bundle, deployment, profile, out)
            bars = {} if name == "agg_2rps" else H100_BARS
            yield from compare(f"h100 {name}", fitted, read_bundle(bundle), found, bars)


def gpt_oss(place: Place, backend: str = "auto") -> Iterator[Line]:
    """gpt-oss-120b on one H200, closed loop: means over workloads drawn as the run's was."""
    operators = place.operators("h200")
    deployment = place.deployment(f"gpt-oss-{backend}", "gpt-oss-120b", "h200_sxm", "0.22.0",
                                  max_num_batched_tokens=8192, max_num_seqs=256,
                                  enable_prefix_caching=False, moe_backend=backend,
                                  max_model_len=16384)  # fmt: skip
    plan = make_plan(deployment, operators=operators)
    model = load_step_time(plan, progress=say)
    for level in (1, 4, 16, 64):
        source = place.data / "h200-gptoss120b-vllm0.22" / f"sweep_c{level}.json.gz"
        real = json.loads(gzip.decompress(source.read_bytes()))
        means = {name: [] for name in ("ttft", "tpot", "e2e")}
        for seed in range(SAMPLES):
            work = drawn(10 * level, np.random.default_rng(seed))
            manifest, tables = replay(work, plan, concurrency=level, step_time=model)
            values = request_metrics(Bundle(place.out, manifest, tables))
            for name, seen in means.items():
                seen.append(float(np.nanmean(values[name])))
        for name, key in (("ttft", "ttft"), ("tpot", "tpot"), ("e2e", "e2el")):
            error = float(np.mean(means[name])) / (real[f"mean_{key}_ms"] / 1e3) - 1
            bar = OSS_BARS[name][0] if name in OSS_BARS else None
            run = f"gpt-oss C={level}" + f" {backend}" * (backend != "auto")
            yield Line(run, "nothing", name, (cell(error, bar),))


def gpt_oss_marlin(place: Place) -> Iterator[Line]:
    """The same on Marlin's experts, as vLLM runs where triton_kernels cannot be imported."""
    return gpt_oss(place, "marlin")


def drawn(requests: int, rng: np.random.Generator) -> Workload:
    """Lengths uniform on [0.8 L, L], L = 8000 tokens in and 1000 out; all there at the start."""
    columns = {
        "arrival_s": np.zeros(requests),
        "prompt_tokens": rng.integers(6400, 8001, requests),
        "output_tokens": rng.integers(800, 1001, requests),
    }
    return make_workload(columns, "uniform lengths")


def deepseek(place: Place) -> Iterator[Line]:
    """DeepSeek-R1 on eight H200, SGLang: the median of full decode steps at each batch size."""
    operators = place.operators("h200")
    deployment = place.deployment("deepseek-r1", "deepseek-v3", "h200_sxm", "0.24.0",
                                  tensor_parallel_size=8, max_num_batched_tokens=8192,
                                  max_num_seqs=256, max_model_len=32768)  # fmt: skip
    steps = pd.read_csv(place.data / "h200-deepseek-r1-tp8-sglang-steps/steps_conc4_16_64.csv.gz")
    after_prefill = steps["phase"].shift() == "prefill"
    steps = steps[(steps["phase"] == "decode") & (steps["step_ms"] < 1000) & ~after_prefill]
    model, _ = load_step_time(make_plan(deployment, operators=operators), progress=say)
    for level in (4, 16, 64):
        full = steps[(steps["conc"] == level) & (steps["running_req"] == level)]
        times = []
        for total in np.percentile(full["kv_tokens"], np.arange(5, 100, 10)):
            length = int(total) // level
            batch = BatchShape(
                tokens=level, rows=level, sampled=level, decodes=level,
                decode_context=level * length, decode_context_sq=level * length**2,
                decode_context_max=length,
            )  # fmt: skip
            times.append(model.times(batch).alone / 1e12)
        error = float(np.median(times)) / (full["step_ms"].median() / 1e3) - 1
        yield Line(f"deepseek-r1 batch {level}", "nothing", "step", ("", cell(error, 0.04)))


def moe(place: Place) -> Iterator[Line]:
    """Qwen3-30B-A3B, DP2 and EP2, on two cards, whose measured run is not at hand."""
    operators = place.operators("rtx")
    example = Path(__file__).parents[2] / "reports/examples/rtx-pro-6000-dp2ep2.yaml"
    plan = make_plan(example, operators=operators)
    work = load_workload(place.data / "sharegpt-qwen3-30b-a3b-300.jsonl")
    manifest, tables = replay(work, plan, say=say)
    values = request_metrics(Bundle(place.out, manifest, tables))
    for name in ("ttft", "tpot", "e2e"):
        seen = values[name][np.isfinite(values[name])]
        shown = tuple(f"{of(seen) * 1e3:,.1f} ms" for _, of in STATISTICS)
        peer = PEER["moe"] if name == "ttft" else ""
        yield Line("rtx_pro_6000 DP2+EP2 (no run)", "nothing", name, shown, "", peer)


def fit(place: Place, bundle: Path, deployment: Path, operators: Path, name: str,
        first: int | None, constants: Sequence[str] = CONSTANTS) -> Path:  # fmt: skip
    """A profile with constants found on the first requests of a measured bundle."""
    out = place.out / "profiles" / name
    shutil.rmtree(out, ignore_errors=True)
    found = fit_overhead([bundle], operators, deployment, out, say, first=first,
                         constants=constants)  # fmt: skip
    if (operators / "baked").is_dir():  # the same kernels, baked already
        shutil.copytree(operators / "baked", out / "baked")
    say(f"{name}: {overhead_table(found)}")
    return out


def remake(path: Path, manifest: Manifest, tables: dict[str, pa.Table]) -> None:
    shutil.rmtree(path, ignore_errors=True)
    write_bundle(path, manifest, tables)


def say(text: str) -> None:
    click.echo(text, err=True)


RUNS: dict[str, Callable[[Place], Iterator[Line]]] = {
    "rtx": rtx, "h100": h100, "gpt-oss": gpt_oss, "gpt-oss-marlin": gpt_oss_marlin,
    "deepseek": deepseek, "moe": moe,
}  # fmt: skip


@click.command(help=__doc__)
@click.option("--data", required=True, type=click.Path(path_type=Path))
@click.option("--rtx", "rtx_profile", type=click.Path(path_type=Path, exists=True))
@click.option("--h100", "h100_profile", type=click.Path(path_type=Path, exists=True))
@click.option("--h200", "h200_profile", type=click.Path(path_type=Path, exists=True))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--only", type=click.Choice(list(RUNS)), multiple=True)
@click.option("--fit", is_flag=True, help="Also with the constants that the bars allow.")
def main(data: Path, out: Path, only: tuple[str, ...], fit: bool, **given: Path | None) -> None:
    profiles = {name.removesuffix("_profile"): path for name, path in given.items()}
    place = Place(data, out, profiles, fit)
    lines: list[Line] = []
    for name, run in RUNS.items():
        if only and name not in only:
            continue
        try:
            lines += run(place)
        except FileNotFoundError as error:
            say(f"{name}: left out: {error}")
    table(lines)
    sys.exit(0 if lines else 2)


def table(lines: Sequence[Line]) -> None:
    """Print the lines as Markdown."""
    heads = ("run", "fitted", "metric", *(n for n, _ in STATISTICS), "KS", "LLMServingSim (means)")
    click.echo("| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    for line in lines:
        errors = (*line.errors, *[""] * (len(STATISTICS) - len(line.errors)))
        cells = (line.run, line.fitted, line.metric, *errors, line.ks, line.peer)
        click.echo("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
