"""Replays of one trace in several deployments as tables, and what their numbers rest on.

    python reports/examples/attention-ffn/table.py runs/colocated runs/pd ... --sweep runs/whatif

Idle shares are those of the pipelined steps whose stages were recorded; where forwards spent
their time is told of all other steps (of ``paf``: those of prompts).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from replay.whatif.evaluate import devices
from reports.whatif import TABLE
from reports.whatif_words import capacity
from simulator.deployment import parse_deployment
from traces.bundle import Bundle, read_bundle
from traces.metrics import column, request_metrics

HEAD = ("", "capacity", "TTFT mean", "p99, s", "TPOT mean", "p99, ms", "tokens/s/GPU",
        "attention idle", "FFN idle")  # fmt: skip
PARTS = ("experts", "straggler", "attention", "layers", "sampling", "collectives")
KINDS = ("fitted", "estimated")


def row(bundle: Bundle, found: str) -> list[str]:
    """A deployment's line."""
    metrics = request_metrics(bundle)
    ttft, tpot = (metrics[name][np.isfinite(metrics[name])] for name in ("ttft", "tpot"))
    first, last = column(bundle.requests, "arrival_s").min(), column(bundle.requests, "finished_s")
    tokens = column(bundle.requests, "output_tokens").sum()
    idle = idle_shares(bundle)
    return [
        bundle.path.name,
        found,
        f"{ttft.mean():.2f}", f"{np.percentile(ttft, 99):.2f}",
        f"{tpot.mean() * 1e3:.1f}", f"{np.percentile(tpot, 99) * 1e3:.1f}",
        f"{tokens / (np.nanmax(last) - first) / gpus(bundle):.1f}",
        *(f"{idle[stage]:.0%}" if stage in idle else "-" for stage in ("attention", "ffn")),
    ]  # fmt: skip


def gpus(bundle: Bundle) -> int:
    """Devices of a deployment."""
    deployment = parse_deployment(bundle.manifest.deployment, str(bundle.path))
    return sum(devices(cluster) for cluster in deployment.clusters)


def idle_shares(bundle: Bundle) -> dict[str, float]:
    """Of the recorded steps, the share in which attention and FFN ranks did nothing."""
    if "spans" not in bundle:
        return {}
    spans = bundle.table("spans").to_pandas()
    spans["busy"] = spans["end_s"] - spans["start_s"]
    whole = spans.groupby("step").agg(begin=("start_s", "min"), end=("end_s", "max"))
    lasted = float((whole["end"] - whole["begin"]).sum())
    found = {}
    for stage in ("attention", "ffn"):
        mine = spans[spans["stage"] == stage]
        found[stage] = 1.0 - float(mine.groupby("cluster")["busy"].sum().max()) / lasted
    return found


def forwards(bundle: Bundle) -> list[str] | None:
    """A deployment's line of where its forwards spent their time; None where nothing says."""
    spent = bundle.manifest.notes.get("forward_s")
    if not spent:
        return None
    whole = sum(spent.values())
    return [bundle.path.name, *(f"{spent.get(part, 0.0) / whole:.1%}" for part in PARTS)]


def basis(bundle: Bundle) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What was fitted and estimated, by cluster; what is not named was measured."""
    note = bundle.manifest.notes["operators"]
    for name, part in note.get("clusters", {"": note}).items():
        lines = []
        for kind in KINDS:
            layers: dict[str, list[str]] = {}
            for layer, what in _flat(part.get(kind, {})):
                layers.setdefault(what, []).append(layer)
            lead = "" if kind == "fitted" else f"{kind}, "
            lines += [f"{lead}{what}: {', '.join(sorted(layers[what]))}" for what in sorted(layers)]
        if "measured_to_tokens_of_all" in part:
            lines.append(
                f"measured up to {part['measured_to_tokens']} tokens of an attention rank and "
                f"{part['measured_to_tokens_of_all']} of all in a micro-batch"
            )
        for cluster, share in part.get("straggler", {}).items():
            lines.append(f"the slowest rank of {cluster} takes {share:.2f} times the mean")
        yield f"{bundle.path.name} {name}".strip(), tuple(lines)


def _flat(given: dict[str, Any]) -> list[tuple[str, str]]:
    """Layers and what is said of them, also where it is said by cluster."""
    found: list[tuple[str, str]] = []
    for key, value in given.items():
        found += _flat(value) if isinstance(value, dict) else [(key.split(": ")[-1], value)]
    return found


def show(rows: Sequence[Sequence[str]]) -> None:
    """Print rows, their first cell to the left."""
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    for line in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join([f"{line[0]:{widths[0]}}", *cells]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--sweep", type=Path)
    given = parser.parse_args()
    capacities: dict[str, str] = {}
    if given.sweep is not None:
        for point in pq.read_table(given.sweep / TABLE).to_pylist():
            capacities[Path(point["base"]).stem] = capacity(point)
    bundles = [read_bundle(path) for path in given.bundles]
    show([HEAD, *(row(b, capacities.get(b.path.name, "-")) for b in bundles)])
    print("where forwards spend their time")
    show([("", *PARTS), *filter(None, map(forwards, bundles))])
    print("what does not rest on kernels measured at its shape")
    said: dict[tuple[str, ...], list[str]] = {}
    for bundle in bundles:
        for name, lines in basis(bundle):
            said.setdefault(lines, []).append(name)
    for lines, names in said.items():
        print("; ".join(names))
        print("\n".join(f"  {line}" for line in lines))


if __name__ == "__main__":
    main()
