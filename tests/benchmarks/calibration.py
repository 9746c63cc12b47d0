"""What calibration on one load changes at another: CPU captures, and a GPU if its data is there.

    python tests/benchmarks/calibration.py [--data shared/data --kernels profiles/h100]

The captures are fitted on one load and held against the other; uncalibrated is what the data
sheet promises. On the H100 the operators come from imported kernels, uncalibrated alone, calibrated
with the two constants that ``fit --operators`` finds in the run of 2 requests/s.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import yaml
from rich.table import Table

from replay.fit_overhead import fit_overhead
from replay.plan import make_plan, sheet_profile_of
from replay.simulate import replay
from reports import words
from reports.console import open_console
from reports.tables import console
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import save_profile
from traces.bundle import Bundle, read_bundle, write_bundle
from traces.convert import convert
from traces.load import load_workload
from traces.samples import sample_runs
from validation.scorecard import Scorecard, build

SHOWN = ("ttft", "tpot", "e2e")
H100 = "serving/h100-qwen3-14b-vllm0.23"
DEPLOYMENT = {
    "model": "traces/models/qwen3-14b.json",
    "engine_version": "0.23.0",
    "clusters": [
        {
            "name": "main",
            "hardware": "h100_sxm",
            "engine": {
                "max_num_batched_tokens": 8192, "max_num_seqs": 256, "num_gpu_blocks": 18038,
            },
        }
    ],
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """Scorecards of one run, simulated before and after calibration on another load."""

    fitted: str
    held: str
    before: Scorecard
    after: Scorecard

    def row(self) -> list[str]:
        """Errors of the means, before and after, and the second's size over the first's."""
        cells = [self.fitted, self.held]
        for metric in SHOWN:
            old, new = (
                card.metrics[metric].statistics["mean"].error or 0.0
                for card in (self.before, self.after)
            )
            times = f"{abs(new / old):.2f}{words.TIMES}" if old else words.NONE
            pair = (words.percent(e, sign=True) for e in (old, new))
            cells += [*pair, times]
        return cells


def simulated(run: Path, deployment: Path, profile: Path, out: Path) -> Bundle:
    manifest, tables = replay(load_workload(run), make_plan(deployment, operators=profile))
    shutil.rmtree(out, ignore_errors=True)
    return write_bundle(out, manifest, tables)


def held_against(
    run: Path, repeats: list[Path], deployment: Path, profiles: Mapping[str, Path], out: Path
) -> list[Scorecard]:
    """A scorecard of ``run`` for each profile."""
    real, others = read_bundle(run), [read_bundle(r) for r in repeats]
    ours = [simulated(run, deployment, path, out / name) for name, path in profiles.items()]
    return [build(real, found, others, allow_vantage_mix=True) for found in ours]


def cpu(out: Path) -> Iterator[Change]:
    """The shipped captures, each load fitted on the other."""
    for model in ("dense", "moe"):
        for seen, held in (("low", "high"), ("high", "low")):
            fitted, (run, *repeats) = sample_runs(f"{model}-{seen}"), sample_runs(f"{model}-{held}")
            profiles = {name: out / f"{model}-{seen}-{name}" for name in ("sheet", "fitted")}
            save_profile(sheet_profile_of(fitted[0]), profiles["sheet"])
            save_profile(fit_profile([read_bundle(r) for r in fitted]), profiles["fitted"])
            cards = held_against(run, repeats, run, profiles, out)
            yield Change(f"{model} on CPU, {seen} load", f"{held} load", *cards)


def h100(data: Path, kernels: Path, out: Path) -> Iterator[Change]:
    """Qwen3-14B on an H100 at four loads, fitted on the lightest."""
    deployment = out / "h100.yaml"
    deployment.write_text(yaml.safe_dump(DEPLOYMENT))
    runs = {}
    for rate in (2, 4, 6, 8):
        for kind in ("vanilla", "patched"):
            run = runs[rate, kind] = out / f"h100-{rate}-{kind}"
            source = data / H100 / f"agg_{rate}rps" / kind / "trace.csv.gz"
            convert(source, "bundle", run, fmt="blis", command=["frontier", "traces", "convert"])
    plain, fitted = out / "h100-kernels", out / "h100-fitted"
    shutil.copytree(kernels, plain)
    fit_overhead([runs[2, "vanilla"]], plain, deployment, fitted, say)
    profiles = {"kernels": plain, "fitted": fitted}
    for rate in (4, 6, 8):
        repeats = [runs[rate, "patched"]]
        cards = held_against(runs[rate, "vanilla"], repeats, deployment, profiles, out)
        yield Change("Qwen3-14B on H100, 2 requests/s", f"{rate} requests/s", *cards)


def table(changes: list[Change]) -> Table:
    """The changes for the console."""
    head = ["fitted on", "held against"]
    for metric in SHOWN:
        head += [f"{metric.upper()} before", "after", "size"]
    return console(head, [change.row() for change in changes], labels=2)


def say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), help="Where the H100's runs lie.")
@click.option("--kernels", type=click.Path(path_type=Path), help="Profile of the H100's kernels.")
def main(data: Path | None, kernels: Path | None) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        changes = list(cpu(Path(scratch)))
        if data and kernels and (data / H100).is_dir():
            changes += h100(data, kernels, Path(scratch))
        else:
            say("left out: the H100, without --data and --kernels")
    open_console().print(table(changes))


if __name__ == "__main__":
    main()
