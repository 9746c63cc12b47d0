"""What a bundle or a workload holds, as tables for a reader."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table
from rich.text import Text

from traces.bundle import Bundle, read_bundle
from traces.formats.base import MeasuredFormat
from traces.load import source_format
from traces.metrics import METRICS, inter_token_latencies, request_metrics
from traces.schema import TABLES
from traces.workload import DEMAND_COLUMNS, Workload

_MAX_NOTE_CHARS = 400


def inspect(path: Path, fmt: str | None = None) -> list[Table]:
    """Tables to print of the bundle or trace file ``path``. Raises TraceError."""
    source = source_format(path, fmt)
    if source is None:
        return bundle_tables(read_bundle(path))
    facts = {"format": source.name}
    if isinstance(source, MeasuredFormat):
        facts["measured"] = "yes: see it with frontier traces convert --to bundle"
    return workload_tables(source.read(path), facts)


def workload_tables(workload: Workload, facts: Mapping[str, str]) -> list[Table]:
    """What is asked for, and what was skipped on reading."""
    rows = {**facts, **demand_facts(workload.requests, workload.hash_block_tokens)}
    notes = readable_notes(workload.notes)
    return [_pairs(rows), length_table(workload.requests), *([_pairs(notes)] if notes else [])]


def bundle_tables(bundle: Bundle) -> list[Table]:
    """What a bundle says of itself, of its requests, of its tables and what was measured."""
    manifest = bundle.manifest
    engine = f"{manifest.engine} {manifest.engine_version}".strip()
    facts = {
        "kind": f"{manifest.kind}, seen by the {manifest.vantage}{_only_demand(bundle)}",
        "engine": engine or "not said",
        "clock": ", ".join(f"{k} {v}" for k, v in manifest.clock.items()),
        "command": " ".join(map(str, manifest.command)),
        "clusters": "; ".join(_clusters(manifest.deployment)),
        "seed": "" if manifest.seed is None else str(manifest.seed),
    }
    facts = {k: v for k, v in facts.items() if v}
    facts |= demand_facts(bundle.requests, manifest.hash_block_tokens)
    facts |= outcome_facts(bundle.requests)
    facts |= {"ignored": "; ".join(map(str, manifest.ignored)) or "nothing"}
    found = [_pairs(facts), length_table(bundle.requests), coverage_table(bundle)]
    metrics = metric_table(bundle)
    found += [metrics] if metrics.row_count else []
    return [*found, _pairs(readable_notes(manifest.notes))]


def demand_facts(requests: pa.Table, hash_block_tokens: int | None) -> dict[str, str]:
    """Count, rate, sessions and shared prefixes of a ``requests`` table."""
    arrival_s = requests.column("arrival_s").to_numpy()
    span_s = float(arrival_s[-1] - arrival_s[0]) if len(arrival_s) else 0.0
    facts = {"requests": str(len(requests))}
    if span_s > 0:
        gaps_s = np.diff(arrival_s)
        facts["arrivals"] = (
            f"over {span_s:.6g} s, {len(gaps_s) / span_s:.4g} a second, "
            f"coefficient of variation {gaps_s.std() / gaps_s.mean():.2f}"
        )
    if "session_id" in requests.column_names:
        facts["sessions"] = str(pc.count_distinct(requests.column("session_id")).as_py())
    if hash_block_tokens and "block_hashes" in requests.column_names and len(requests):
        share = prefix_share(requests, hash_block_tokens)
        facts["shared prefixes"] = (
            f"{share:.1%} of the prompt tokens, in blocks of {hash_block_tokens} "
            "(what a cache without limit would hit)"
        )
    return facts


def prefix_share(requests: pa.Table, block_tokens: int) -> float:
    """Share of prompt tokens in full blocks that an earlier request held, prompt or output.

    In order of arrival, and as if nothing were ever evicted: an upper bound for a cache.
    """
    prompts = requests.column("prompt_tokens").to_numpy()
    hashes = requests.column("block_hashes").combine_chunks()
    owner = pc.list_parent_indices(hashes).to_numpy()
    flat = pc.list_flatten(hashes).to_numpy()
    place = np.arange(len(flat)) - np.searchsorted(owner, owner)
    _, first, code = np.unique(flat, return_index=True, return_inverse=True)
    seen = (owner[first[code]] < owner) & (place < prompts[owner] // block_tokens)
    return float(seen.sum() * block_tokens / prompts.sum())


def outcome_facts(requests: pa.Table) -> dict[str, str]:
    """How the requests of a bundle ended, were preempted and hit the prefix cache."""
    facts: dict[str, str] = {}
    if not len(requests):
        return facts
    if "status" in requests.column_names:
        counts = Counter(requests.column("status").to_pylist())
        facts["ended"] = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    if "preemptions" in requests.column_names:
        lost = pc.fill_null(requests.column("preemptions"), 0).to_numpy()
        facts["preempted"] = f"{np.mean(lost > 0):.1%} of the requests, {lost.sum()} times"
    if "cached_tokens" in requests.column_names:
        cached = pc.sum(requests.column("cached_tokens")).as_py() or 0
        share = cached / pc.sum(requests.column("prompt_tokens")).as_py()
        facts["found in the prefix cache"] = f"{share:.1%} of the prompt tokens"
    return facts


def length_table(requests: pa.Table) -> Table:
    """Percentiles of the lengths, in tokens."""
    table = _table("tokens", "mean", "p50", "p90", "p99", "max")
    for name in ("prompt_tokens", "output_tokens"):
        values = requests.column(name).to_numpy()
        if len(values):
            cells = [values.mean(), *np.percentile(values, [50, 90, 99, 100])]
            table.add_row(name.removesuffix("_tokens"), *(f"{c:.0f}" for c in cells))
    return table


def metric_table(bundle: Bundle) -> Table:
    """The metrics of ``traces.metrics`` the bundle has, in ms."""
    table = _table("ms", "n", "mean", "p50", "p99")
    values = request_metrics(bundle) | {"itl": inter_token_latencies(bundle)}
    for name, metric in METRICS.items():
        known = values[name][np.isfinite(values[name])]
        if len(known):
            cells = [known.mean(), *np.percentile(known, [50, 99])]
            table.add_row(metric.label, str(len(known)), *(f"{c * 1e3:.3f}" for c in cells))
    return table


def coverage_table(bundle: Bundle) -> Table:
    """Rows of each table, and which of its optional columns are absent or not full."""
    table = _table("table", "rows", "columns partly filled", "columns absent")
    for name in bundle.tables:
        data = bundle.table(name)
        partly = [f"{n} {share:.0%}" for n, share in _filled(data) if share < 1]
        absent = [c.name for c in TABLES[name].columns if c.name not in data.column_names]
        table.add_row(name, str(len(data)), Text(", ".join(partly)), Text(", ".join(absent)))
    return table


def _only_demand(bundle: Bundle) -> str:
    says_more = {*bundle.requests.column_names} - {*DEMAND_COLUMNS} or bundle.tables[1:]
    return "" if says_more else "; a workload: what is asked for, nothing that was done"


def _filled(data: pa.Table) -> Iterator[tuple[str, float]]:
    for name in data.column_names:
        yield name, 1 - data.column(name).null_count / max(len(data), 1)


def _clusters(deployment: Mapping[str, Any]) -> Iterator[str]:
    clusters = deployment.get("clusters")
    for cluster in clusters if isinstance(clusters, list) else ():
        if not isinstance(cluster, dict):
            continue
        words = (cluster.get(k) for k in ("name", "role", "hardware"))
        yield f"{' '.join(str(w) for w in words if w)} x {cluster.get('replicas', 1)}"


def readable_notes(notes: Mapping[str, Any]) -> dict[str, str]:
    """Notes that can be read at a glance; long ones are only named."""
    texts = {key: str(value) for key, value in notes.items()}
    return {k: t if len(t) <= _MAX_NOTE_CHARS else "(in bundle.yaml)" for k, t in texts.items()}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        words = name.startswith(("columns", "table")) or i == 0
        table.add_column(name, justify="left" if words else "right", overflow="fold")
    return table


def _pairs(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in facts.items():
        table.add_row(Text(name), Text(text))
    return table
