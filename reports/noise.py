"""``frontier noise``: how far runs of the real system differ from one another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from reports import words
from traces.bundle import Bundle, is_bundle, read_bundle
from traces.errors import TraceError
from traces.formats import recognise
from traces.formats.base import MeasuredFormat
from validation.floor import Floor, noise_floor

SHOWN = ("mean", "p50", "p90", "p99")
_UNUSED = ("block_hashes",)


def run_noise(
    groups: Sequence[Path],
    out: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Floor]:
    """The floor of each group of runs, by the name of its directory; ``out`` keeps it as JSON.

    A group is a directory; its runs are the bundles in it, the traces that tell what was
    measured, or directories that hold one. Raises TraceError.
    """
    found = {}
    for group in groups:
        progress(f"reading {group}")
        found[str(group)] = noise_floor([*runs_of(group)])
    if out is not None:
        data = {"schema": 1, "groups": {name: _data(floor) for name, floor in found.items()}}
        out.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return found


def runs_of(group: Path) -> Iterator[Bundle]:
    """The runs in a directory, each named after its own."""
    if not group.is_dir():
        raise TraceError(f"{group}: no such directory")
    for entry in sorted(group.iterdir()):
        if is_bundle(entry):
            yield read_bundle(entry, eager=False, skip=_UNUSED)
        elif entry.is_file():
            yield from _measured(entry, entry)
        else:
            for file in sorted(f for f in entry.iterdir() if f.is_file()):
                yield from _measured(file, entry)


def _measured(file: Path, name: Path) -> Iterator[Bundle]:
    """The bundle in a trace file; nothing if it is none, or tells nothing measured."""
    try:
        source = recognise(file)
    except TraceError:
        return
    if isinstance(source, MeasuredFormat):
        yield Bundle(name, *source.read_bundle(file))


def floor_table(name: str, floor: Floor) -> Table:
    """One group's floor: a row a statistic, differences of the pairs beside the noise."""
    title = f"{name}: {len(floor.runs)} runs, {floor.requests:,} requests in all of them"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(("metric", "", "mean", "noise", "pairs differ by", "KS")):
        table.add_column(column, justify="right" if i > 1 else "left", no_wrap=True)
    for errors in floor.metrics.values():
        metric = errors.metric
        shown = [(n, s) for n, s in errors.statistics.items() if n in SHOWN]
        for i, (statistic, s) in enumerate(shown):
            ks = errors.distances.get("ks")
            table.add_row(
                metric.label if not i else "",
                statistic,
                words.value(s.mean, metric),
                words.percent(s.noise),
                _between(s.smallest, s.largest),
                f"{ks:.3f}" if ks is not None and not i else "",
                end_section=i == len(shown) - 1,
            )
    return table


def summary(floors: Mapping[str, Floor]) -> list[str]:
    """For the metrics users feel: between what the means of two runs differ, over all groups."""
    lines = []
    for name in words.HEADLINE:
        found = [f.metrics[name] for f in floors.values() if name in f.metrics]
        sizes = [
            v for m in found for s in (m.statistics["mean"],) for v in (s.smallest, s.largest)
            if v is not None
        ]  # fmt: skip
        if sizes:
            label = found[0].metric.label
            lines.append(f"mean {label}: two runs differ by {_between(min(sizes), max(sizes))}")
    return lines


def _between(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return words.NONE
    same = words.percent(low) == words.percent(high)
    return words.percent(high) if same else f"{words.percent(low)} to {words.percent(high)}"


def _data(floor: Floor) -> dict[str, Any]:
    return {
        "runs": floor.runs,
        "requests": floor.requests,
        "metrics": {
            name: {
                **{k: asdict(s) for k, s in m.statistics.items()},
                **m.distances,
                "unit": m.metric.unit,
            }
            for name, m in floor.metrics.items()
        },
    }
