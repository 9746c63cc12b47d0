"""What a simulation of a prefill and a decode cluster leaves behind."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulator.disaggregation.simulation import PrefillDecode
from simulator.records import in_order, seconds, statuses, with_columns


def requests_table(simulation: PrefillDecode, cluster: str) -> pa.Table:
    """The ``requests`` table; ``cluster`` is the name of the prefill side.

    What the client gets is the decode side's, but for requests that need none of it. A
    request whose lease ended too early counts as failed.
    """
    handovers = simulation.handovers
    first, last = simulation.prefill.demand.records, simulation.decode.demand.records
    decodes = np.array(simulation.needs_decode)
    replicas = {name: handovers.column(f"{name}_replica") for name in ("prefill", "decode")}
    status = statuses(np.where(decodes, last["status"], first["status"]))
    lost = pa.array(handovers.column("lost") > 0)
    columns = {
        "arrival_s": seconds(first["arrival_ps"]),
        "output_tokens": pa.array(np.where(decodes, last["output"], first["output"])),
        "cached_tokens": pa.array(np.maximum(first["cached_tokens"], 0)),
        "cluster": pa.repeat(cluster, len(decodes)),
        "replica": pa.array(replicas["prefill"], mask=replicas["prefill"] < 0),
        "queued_s": seconds(first["queued_ps"]),
        "scheduled_s": seconds(first["first_scheduled_ps"]),
        "first_token_s": seconds(
            np.where(decodes, last["first_token_ps"], first["first_token_ps"])
        ),
        "finished_s": seconds(np.where(decodes, last["finished_ps"], first["finished_ps"])),
        "preemptions": pa.array(first["preemptions"] + last["preemptions"]),
        "status": pc.if_else(lost, "failed", status),
        "decode_replica": pa.array(replicas["decode"], mask=replicas["decode"] < 0),
        "prefill_finished_s": seconds(handovers.column("finished_ps")),
        "transfer_start_s": seconds(handovers.column("start_ps")),
        "transfer_end_s": seconds(handovers.column("end_ps")),
        "decode_queued_s": seconds(last["queued_ps"]),
        "decode_scheduled_s": seconds(last["first_scheduled_ps"]),
    }
    return with_columns(simulation.decode.demand.table, columns)


def transfers_table(simulation: PrefillDecode, source: str, destination: str) -> pa.Table:
    """The ``transfers`` table, by start; clusters by their names."""
    handovers = simulation.handovers
    start, end = (handovers.column(f"{name}_ps") for name in ("start", "end"))
    rows = np.flatnonzero(end >= 0)
    rows = rows[np.argsort(start[rows], kind="stable")]
    sides = {"source": (source, "prefill"), "destination": (destination, "decode")}
    columns = {
        name: pa.array([f"{cluster}/{i}" for i in handovers.column(f"{side}_replica")[rows]])
        for name, (cluster, side) in sides.items()
    }
    columns |= {
        "request_id": simulation.decode.demand.table["request_id"].take(pa.array(rows)),
        "bytes": pa.array([simulation.connection.bytes(handovers.blocks[i]) for i in rows]),
        "start_s": seconds(start[rows]),
        "end_s": seconds(end[rows]),
    }
    return in_order("transfers", columns)
