"""Bundles of several engines, or of engines and their client, as one on one clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle, Manifest, write_bundle
from traces.check import table_faults
from traces.clusters import Clusters
from traces.errors import TraceError
from traces.schema import TABLES

SAME_HOST_S = 0.05  # clocks that agree on the instant of boot to this are of one host
_DURATIONS = ("think_s", "forward_s")  # seconds, but not points in time
_CLIENT_KNOWS = ("sent_s", "session_id", "turn", "think_s")


def merge(bundles: Sequence[Bundle], out: Path, command: Sequence[str] = ()) -> Bundle:
    """Merge bundles, write the result as ``out`` and return it.

    Engines must have served different requests with one model; how their clusters become
    one deployment is told in ``traces.clusters``. The bundle of a client adds to the
    engines' requests when they were sent and what session they belong to; what the client
    saw come back stays in its own bundle. Block hashes are taken as they are: captures with
    keys of their own never seem to share a prefix. Raises TraceError.
    """
    engines = [b for b in bundles if b.manifest.vantage == "engine"]
    clients = [b for b in bundles if b.manifest.vantage == "client"]
    if len(bundles) < 2:
        raise TraceError("merge: needs at least two bundles")
    parts = engines or clients
    _check_alike(parts)
    _check_ids(parts)
    shifts_s, clock, basis = common_clock(bundles)
    moved = {b.path: shifted(b, s) for b, s in zip(bundles, shifts_s, strict=True)}
    clusters = Clusters()
    tables = _concatenated([clusters.add(b, moved[b.path]) for b in parts])
    notes = {
        "merged": [
            {"bundle": b.path.name, "vantage": b.manifest.vantage, "moved_s": s}
            for b, s in zip(bundles, shifts_s, strict=True)
        ],
        "clock": basis,
        **clusters.notes,
    }
    if engines and clients:
        tables["requests"], notes["joined"] = _joined(
            tables["requests"], [(b, moved[b.path]["requests"]) for b in clients]
        )
    faults = [f for n, t in tables.items() for f in table_faults(TABLES[n], t, f"{out}: {n}")]
    if faults:
        raise TraceError(faults)
    first = parts[0].manifest
    manifest = Manifest(
        kind=first.kind,
        vantage=first.vantage,
        engine=first.engine,
        engine_version=first.engine_version,
        clock=clock,
        command=list(command),
        deployment=clusters.deployment(),
        hash_block_tokens=first.hash_block_tokens,
        ignored=_ignored(engines),
        notes=notes,
    )
    return write_bundle(out, manifest, tables, model_config=parts[0].model_config())


def common_clock(bundles: Sequence[Bundle]) -> tuple[list[float], dict[str, Any], str]:
    """How far each bundle's times move, in seconds; the clock they end on; why that one.

    The zero of all becomes the earliest. The monotonic clock is exact on one host and means
    nothing between two; the epoch clock is as good as the hosts are synchronised. Raises
    TraceError if the bundles have neither in common.
    """
    clocks = [b.manifest.clock for b in bundles]
    zeros = {
        key: np.array([float(c[key]) for c in clocks])
        for key in ("zero_monotonic_s", "zero_epoch_s")
        if all(isinstance(c.get(key), (int, float)) for c in clocks)
    }
    if not zeros:
        said = "; ".join(f"{b.path}: {_keys(b.manifest.clock)}" for b in bundles)
        raise TraceError(f"no clock in common, zero_epoch_s or zero_monotonic_s ({said})")
    key, basis = "zero_epoch_s", "epoch, as good as the hosts are synchronised"
    if len(zeros) == 2 and np.ptp(zeros["zero_epoch_s"] - zeros["zero_monotonic_s"]) < SAME_HOST_S:
        key, basis = "zero_monotonic_s", "monotonic: one host, the instants of boot agree"
    elif "zero_epoch_s" not in zeros:
        key, basis = "zero_monotonic_s", "monotonic, taken to be of one host"
    earliest = int(np.argmin(zeros[key]))
    clock = {k: v for k, v in clocks[earliest].items() if k in ("name", *zeros)}
    return (zeros[key] - zeros[key][earliest]).tolist(), clock, basis


def _keys(clock: dict[str, Any]) -> str:
    return ", ".join(k for k in clock if k.startswith("zero_")) or "none"


def _check_alike(parts: Sequence[Bundle]) -> None:
    first = parts[0]
    faults = []
    for other in parts[1:]:
        for key in ("kind", "engine", "engine_version", "hash_block_tokens"):
            here, there = (getattr(b.manifest, key) for b in (other, first))
            if here != there:
                faults.append(f"{other.path}: {key} is {here!r}, {there!r} in {first.path}")
        if other.model_config() != first.model_config():
            faults.append(f"{other.path}: the model is not that of {first.path}")
    if faults:
        raise TraceError(faults)


def _check_ids(parts: Sequence[Bundle]) -> None:
    owner: dict[str, Path] = {}
    for bundle in parts:
        twice = [i for i in bundle.requests.column("request_id").to_pylist() if i in owner]
        if twice:
            more = f" (and {len(twice) - 1} more)" if len(twice) > 1 else ""
            raise TraceError(
                f"{bundle.path}: request {twice[0]!r} is also in {owner[twice[0]]}{more}: only "
                "bundles of engines that served different requests can be merged, not repeats "
                "of a run nor the prefill and decode side of one"
            )
        owner |= dict.fromkeys(bundle.requests.column("request_id").to_pylist(), bundle.path)


def _concatenated(parts: Sequence[dict[str, pa.Table]]) -> dict[str, pa.Table]:
    """Each table of all parts, in the order of the parts; requests by arrival."""
    tables = {
        name: pa.concat_tables([p[name] for p in parts if name in p], promote_options="default")
        for name in TABLES
        if any(name in p for p in parts)
    }
    order = pc.sort_indices(tables["requests"], [("arrival_s", "ascending")])
    return {**tables, "requests": tables["requests"].take(order)}


def shifted(bundle: Bundle, shift_s: float) -> dict[str, pa.Table]:
    """All tables of a bundle with their points in time moved by ``shift_s``."""
    return {name: _shifted_table(name, bundle.table(name), shift_s) for name in bundle.tables}


def _shifted_table(name: str, data: pa.Table, shift_s: float) -> pa.Table:
    if not shift_s or name == "kernels":  # operator timings have no place in time
        return data
    for i, column in enumerate(data.column_names):
        declared = TABLES[name].by_name[column]
        if declared.unit != "s" or column in _DURATIONS:
            continue
        values = data.column(column)
        if declared.type == "list[float]":
            lists = values.combine_chunks()
            flat = pc.add(lists.flatten(), shift_s)
            moved = pa.ListArray.from_arrays(_offsets(lists), flat, mask=lists.is_null())
        else:
            moved = pc.add(values, shift_s)
        data = data.set_column(i, column, moved)
    return data


def _offsets(lists: pa.ListArray) -> pa.Array:
    sizes = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())


def _joined(
    requests: pa.Table, clients: Sequence[tuple[Bundle, pa.Table]]
) -> tuple[pa.Table, dict[str, int]]:
    """The engines' requests with what their clients know of them, and how many matched."""
    _check_ids([bundle for bundle, _ in clients])
    known = pa.concat_tables([t for _, t in clients], promote_options="default")
    rows = pc.index_in(requests.column("request_id"), value_set=known.column("request_id"))
    matched = len(rows) - rows.null_count
    if not matched:
        names = ", ".join(str(bundle.path) for bundle, _ in clients)
        raise TraceError(f"{names}: no request of it is in an engine's bundle, by request_id")
    for name in _CLIENT_KNOWS:
        if name not in known.column_names:
            continue
        values = known.column(name).combine_chunks().take(rows.combine_chunks())
        if name in requests.column_names:
            requests = requests.drop_columns([name])
        requests = requests.append_column(name, values)
    counts = {
        "requests of both": matched,
        "only of an engine": len(rows) - matched,
        "only of a client, left out": len(known) - matched,
    }
    return requests, {k: n for k, n in counts.items() if n}


def _ignored(engines: Sequence[Bundle]) -> list[str]:
    spread = ["how requests were spread over the merged engines"] if len(engines) > 1 else []
    every = [str(i) for bundle in engines for i in bundle.manifest.ignored]
    return [*dict.fromkeys(every), *spread]
