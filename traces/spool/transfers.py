"""KV transfers of a capture: what the ranks of a decode engine pulled, request by request."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from traces.schema import TABLES
from traces.spool.replica import CLUSTER, Replica
from traces.spool.streams import Spool


def transfers_table(
    spool: Spool, replicas: list[Replica], names: list[list[str]], zero_s: float
) -> pa.Table:
    """Rows of the ``transfers`` table, by start; ``source`` is the other engine's own id.

    A transfer ends with that of its slowest rank: when NIXL says it was over, which is never
    later than the engine saw it.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for name in spool.names("transfers"):
        index = int(name.split(".")[1])
        for row in spool.rows(name).to_pylist():
            end_s = min(row["seen_s"], row["posted_s"] + row["duration_s"])
            part = found.setdefault((index, row["id"]), {**row, "bytes": 0, "end_s": end_s})
            part["bytes"] += row["bytes"]
            part["start_s"] = min(part["start_s"], row["start_s"])
            part["end_s"] = max(part["end_s"], end_s)
    external = {
        (replica.index, internal): name
        for replica, own in zip(replicas, names, strict=True)
        for internal, name in zip(replica.ids, own, strict=True)
    }
    rows = [
        {
            "source": row["source"],
            "destination": f"{CLUSTER}/{index}",
            "request_id": external[index, internal],
            "bytes": row["bytes"],
            "start_s": row["start_s"] - zero_s,
            "end_s": row["end_s"] - zero_s,
        }
        for (index, internal), row in found.items()
        if (index, internal) in external
    ]
    columns = [c.name for c in TABLES["transfers"].columns]
    table = pa.Table.from_pylist(rows, TABLES["transfers"].arrow_schema(columns))
    return table.take(pc.sort_indices(table, [("start_s", "ascending")]))
