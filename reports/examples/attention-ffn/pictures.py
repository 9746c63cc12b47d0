"""The stages of one step as a picture, from a trace that ``frontier timeline`` wrote.

python reports/examples/attention-ffn/pictures.py TRACE.json --step 40 --out stages.svg
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reports.svg import lanes_chart


def stage_lanes(trace: Mapping[str, Any], step: int) -> dict[str, list[tuple[float, float, str]]]:
    """The stages of one step of every bundle in a trace, each bundle's from its own begin."""
    names: dict[tuple[int, int], str] = {}
    bundles: dict[int, str] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "M" and event["name"] == "thread_name":
            names[event["pid"], event["tid"]] = event["args"]["name"]
        if event["ph"] == "M" and event["name"] == "process_name":
            bundles[event["pid"]] = event["args"]["name"]
    stages = [
        e for e in trace["traceEvents"]
        if e["ph"] == "X" and e.get("cat") == "stage" and e["args"]["step"] == step
    ]  # fmt: skip
    begins: dict[str, float] = {}
    for event in stages:
        bundle = bundles[event["pid"]].split(":")[0]
        begins[bundle] = min(begins.get(bundle, math.inf), event["ts"])
    lanes: dict[str, list[tuple[float, float, str]]] = {}
    for event in stages:
        whole = bundles[event["pid"]]
        bundle, part = whole.split(":")[0], whole.split(": ")[-1].split("/")[0]
        lane = names[event["pid"], event["tid"]].split(", ")[-1].split(" (")[0]
        key = f"{bundle.split()[0]}, {part}, {lane.replace('micro-batch ', 'mb ')}"
        begin = (event["ts"] - begins[bundle]) / 1e3
        lanes.setdefault(key, []).append((begin, begin + event["dur"] / 1e3, event["name"]))
    return dict(sorted(lanes.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--title", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    raw = given.trace.read_bytes()
    trace = json.loads(gzip.decompress(raw) if given.trace.suffix == ".gz" else raw)
    lanes = stage_lanes(trace, given.step)
    if not lanes:
        parser.error(f"{given.trace}: no stages of step {given.step}")
    given.out.write_text(lanes_chart(given.title or f"step {given.step}", lanes))


if __name__ == "__main__":
    main()
