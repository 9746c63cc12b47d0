"""The bundles of prefill and decode engines that served the same requests, as one bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle, Manifest, write_bundle
from traces.check import table_faults
from traces.errors import TraceError
from traces.merge import common_clock, shifted
from traces.schema import TABLES

STEPS = ("steps", "step_requests", "experts", "spans")
_OF_DECODE = {  # column of the pair: column of the decode engine
    "output_tokens": "output_tokens",
    "block_hashes": "block_hashes",
    "first_token_s": "first_token_s",
    "finished_s": "finished_s",
    "status": "status",
    "decode_replica": "replica",
    "decode_queued_s": "queued_s",
    "decode_scheduled_s": "scheduled_s",
}
CONNECTOR = "KV connector"  # what a capture of one engine says it ignored


def merge_pair(
    prefill: Sequence[Bundle],
    decode: Sequence[Bundle],
    deployment: Mapping[str, Any],
    out: Path,
    command: Sequence[str] = (),
) -> Bundle:
    """Write the bundle of a disaggregated deployment as ``out`` and return it.

    ``prefill`` and ``decode`` are captures of one engine each, in the order of their
    clusters' replicas. ``deployment`` is the file's: clusters are told by their roles, their
    engines' settings become the captured ones. Requests are matched by id; the times of the
    first token and the end are the decode side's. Raises TraceError.
    """
    bundles = [*prefill, *decode]
    shifts_s, clock, basis = common_clock(bundles)
    names = {c["role"]: c["name"] for c in deployment["clusters"]}
    moved = {b.path: shifted(b, s) for b, s in zip(bundles, shifts_s, strict=True)}
    sides = {
        role: [_placed(moved[b.path], names[role], i) for i, b in enumerate(parts)]
        for role, parts in (("prefill", prefill), ("decode", decode))
    }
    tables: dict[str, pa.Table] = {}
    for name in STEPS:
        pieces = [t[name] for parts in sides.values() for t in parts if name in t]
        if pieces:
            tables[name] = pa.concat_tables(pieces, promote_options="default")
    first, last = (
        pa.concat_tables([t["requests"] for t in sides[role]], promote_options="default")
        for role in ("prefill", "decode")
    )
    transfers = _transfers(prefill, sides["decode"], names["prefill"])
    tables["transfers"] = transfers
    tables["requests"], matched = _joined(first, last, transfers)
    faults = [f for n, t in tables.items() for f in table_faults(TABLES[n], t, f"{out}: {n}")]
    if faults:
        raise TraceError(faults)
    clusters = [
        {
            **cluster,
            "engine": (prefill if cluster["role"] == "prefill" else decode)[0].manifest.deployment[
                "clusters"
            ][0]["engine"],
        }
        for cluster in deployment["clusters"]
    ]
    manifest = Manifest(
        kind="measured",
        vantage="engine",
        engine="vllm",
        engine_version=prefill[0].manifest.engine_version,
        clock=clock,
        command=list(command),
        deployment={**deployment, "clusters": clusters},
        hash_block_tokens=decode[0].manifest.hash_block_tokens,
        ignored=sorted({i for b in bundles for i in b.manifest.ignored} - {CONNECTOR}),
        notes={
            "clock": basis,
            "requests of prefill": len(first),
            "of these met by decode": matched,
            **{f"capture of {b.path.name}": b.manifest.notes for b in bundles},
        },
    )
    return write_bundle(out, manifest, tables, model_config=prefill[0].model_config())


def _placed(tables: dict[str, pa.Table], cluster: str, replica: int) -> dict[str, pa.Table]:
    """Tables of one engine under its cluster's name and its number there."""
    placed = {}
    for name, data in tables.items():
        for column, value in (("cluster", cluster), ("replica", replica)):
            if column in data.column_names:
                values = pa.repeat(value, len(data))
                data = data.set_column(data.column_names.index(column), column, values)
        if name == "transfers":
            place = data.column_names.index("destination")
            values = pa.repeat(f"{cluster}/{replica}", len(data))
            data = data.set_column(place, "destination", values)
        placed[name] = data
    return placed


def _transfers(
    prefill: Sequence[Bundle], decode: Sequence[dict[str, pa.Table]], cluster: str
) -> pa.Table:
    pieces = [t["transfers"] for t in decode if "transfers" in t]
    if not pieces:
        raise TraceError("no KV transfer was recorded: the decode engines pulled nothing")
    table = pa.concat_tables(pieces)
    known = {
        str(b.manifest.notes["vllm_config"]["kv_transfer_config"]["engine_id"]): f"{cluster}/{i}"
        for i, b in enumerate(prefill)
    }
    source = pa.array([known.get(s, s) for s in table["source"].to_pylist()], pa.string())
    table = table.set_column(table.column_names.index("source"), "source", source)
    return table.take(pc.sort_indices(table, [("start_s", "ascending")]))


def _joined(first: pa.Table, last: pa.Table, transfers: pa.Table) -> tuple[pa.Table, int]:
    """Requests of both sides, by arrival, and how many the decode side met."""
    ids = first["request_id"].combine_chunks()
    rows = pc.index_in(ids, value_set=last["request_id"].combine_chunks())
    moves = pc.index_in(ids, value_set=transfers["request_id"].combine_chunks())
    taken = {
        name: last[column].combine_chunks().take(rows)
        for name, column in _OF_DECODE.items()
        if column in last.column_names
    }
    taken["status"] = pc.fill_null(taken["status"], "unfinished")
    taken["output_tokens"] = pc.fill_null(taken["output_tokens"], 0)
    preempted = pc.fill_null(last["preemptions"].combine_chunks().take(rows), 0)
    taken["preemptions"] = pc.add(first["preemptions"].combine_chunks(), preempted)
    taken["prefill_finished_s"] = first["finished_s"]
    for side in ("start", "end"):
        taken[f"transfer_{side}_s"] = transfers[f"{side}_s"].combine_chunks().take(moves)
    columns = {**{name: first[name] for name in first.column_names}, **taken}
    wanted = [c.name for c in TABLES["requests"].columns if c.name in columns]
    table = pa.table({name: columns[name] for name in wanted})
    table = table.cast(TABLES["requests"].arrow_schema(wanted))
    order = pc.sort_indices(table, [("arrival_s", "ascending")])
    return table.take(order), len(rows) - rows.null_count
