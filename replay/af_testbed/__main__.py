"""``python -m replay.af_testbed``: launches of the testbed, as bundles."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from pathlib import Path

import click

from replay.af_testbed.launch import Engine, warm
from replay.af_testbed.record import write_run
from replay.af_testbed.shape import Launch, ModelShape, Run, Wire
from traces.errors import CaptureError, ConfigError, TraceError


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False),
              help="A bundle for each run: OUT/launch0/repeat0/m2-b48.")  # fmt: skip
@click.option("--layers", type=click.IntRange(1), default=4)
@click.option("--hidden", type=click.IntRange(8), default=256)
@click.option("--heads", type=click.IntRange(1), default=4)
@click.option("--kv-heads", type=click.IntRange(1), default=4)
@click.option("--head-dim", type=click.IntRange(2), default=64)
@click.option("--experts", type=click.IntRange(1), default=8)
@click.option("--top-k", type=click.IntRange(1), default=2)
@click.option("--inter", type=click.IntRange(1), default=768, help="Width of one expert.")
@click.option("--vocab", type=click.IntRange(2), default=2048)
@click.option("--batch", type=click.IntRange(1), default=192, help="Requests of a run.")
@click.option("--prompt", type=click.IntRange(1), default=64, help="Tokens of a prompt.")
@click.option("--output", type=click.IntRange(2), default=32, help="Steps of a run.")
@click.option("--micro-batches", default="1,2,3,4", help="Numbers of micro-batches to run.")
@click.option("--ffn-ranks", type=click.IntRange(1, 2), default=1)
@click.option("--bandwidth-gb-s", type=click.FloatRange(0, min_open=True),
              help="Shape the wire: GB/s in each direction.")  # fmt: skip
@click.option("--latency-us", type=click.FloatRange(0), default=0.0, help="Of the shaped wire.")
@click.option("--shared-weights", is_flag=True,
              help="All micro-batches use one copy of the weights, which stay cached.")  # fmt: skip
@click.option("--launches", type=click.IntRange(1), default=3)
@click.option("--repeats", type=click.IntRange(1), default=4, help="Of every run in a launch.")
@click.option("--seed", type=int, default=0)
def main(
    out: Path, layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, experts: int,
    top_k: int, inter: int, vocab: int, batch: int, prompt: int, output: int,
    micro_batches: str, ffn_ranks: int, bandwidth_gb_s: float | None, latency_us: float,
    shared_weights: bool, launches: int, repeats: int, seed: int,
) -> None:  # fmt: skip
    """Run a small MoE decoder with attention and FFN in processes of their own.

    Every launch starts the processes anew, warms up, and makes all runs REPEATS times: with
    each number of micro-batches, and with one micro-batch of every size those have. The runs
    of a repeat take turns step by step.
    """
    try:
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"--out {out}: exists and is not empty")
        counts = _counts(micro_batches, batch)
        model = ModelShape(
            layers, hidden, heads, kv_heads, head_dim, experts, top_k, inter, vocab, seed
        )
        _check(model, ffn_ranks, bandwidth_gb_s, latency_us)
        most = max(counts)
        launch = Launch(
            model, Wire(bandwidth_gb_s, latency_us), ffn_ranks, batch, most, prompt + output,
            1 if shared_weights else most, yielding=ffn_ranks > 1,
        )  # fmt: skip
        runs = _runs(counts, Run(batch, 1, prompt, output, seed=seed))
        for i in range(launches):
            _launch(out, launch, runs, i, repeats)
    except (ConfigError, CaptureError, TraceError) as error:
        click.echo(f"af_testbed: {error}", err=True)
        sys.exit(2)


def _counts(text: str, batch: int) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f"--micro-batches: not numbers: {text!r}") from None
    if counts[0] < 1 or counts[-1] > batch:
        raise ConfigError(f"--micro-batches: 1 to {batch}, the requests of a run, got {text}")
    return counts


def _check(
    model: ModelShape, ffn_ranks: int, bandwidth_gb_s: float | None, latency_us: float
) -> None:
    if model.heads % model.kv_heads:
        raise ConfigError(f"--kv-heads: {model.kv_heads} does not divide {model.heads} heads")
    if model.head_dim % 2:
        raise ConfigError(f"--head-dim: {model.head_dim} is odd, rotary embedding needs pairs")
    if model.experts % ffn_ranks:
        raise ConfigError(f"--experts: {ffn_ranks} FFN ranks do not divide {model.experts}")
    if model.top_k > model.experts:
        raise ConfigError(f"--top-k: {model.top_k} of {model.experts} experts")
    if latency_us and bandwidth_gb_s is None:
        raise ConfigError("--latency-us: a shaped wire needs --bandwidth-gb-s too")


def _runs(counts: list[int], whole: Run) -> list[Run]:
    """Runs of each number of micro-batches, and one micro-batch of each size among them."""
    runs = [Run(whole.batch, m, whole.prompt, whole.output, seed=whole.seed) for m in counts]
    sizes = sorted({high - low for run in runs for low, high in run.cut()} - {whole.batch})
    return runs + [Run(n, 1, whole.prompt, whole.output, seed=whole.seed) for n in sizes]


def _launch(out: Path, launch: Launch, runs: list[Run], number: int, repeats: int) -> None:
    with Engine(launch) as engine:
        warm(engine, runs)
        for repeat in range(repeats):
            found = engine.run(runs)
            folder = out / f"launch{number}" / f"repeat{repeat}"
            notes = {
                "launch": number, "repeat": repeat, "weight_copies": launch.copies,
                "cores": engine.cores, "torch": version("torch"), "processor": _processor(),
            }  # fmt: skip
            said = []
            for run, records in zip(runs, found, strict=True):
                name = f"m{run.micro_batches}-b{run.batch}"
                write_run(folder / name, launch, run, records, notes)
                steps = records[0].steps[1:]
                mean_ms = sum(b - a for a, b in steps) / len(steps) / 1e6
                said.append(f"{name} {mean_ms:.2f}")
            click.echo(f"launch {number}, repeat {repeat}, ms a step: {', '.join(said)}")


def _processor() -> str:
    """Its name, as the kernel has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
