"""What the ranks of a replica recorded inside its steps: expert loads and collectives."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.schema import TABLES
from traces.spool.replica import Replica, keyed
from traces.spool.streams import Spool


def experts_table(spool: Spool, replicas: list[Replica]) -> pa.Table:
    """Tokens per expert of every completed step and layer, over all ranks of the replica."""
    tables = []
    for replica, name in _files(spool, "experts", replicas):
        rows = spool.rows(name)
        at = replica.rows_of(rows["step"].to_numpy())
        rows, at = rows.filter(pa.array(at >= 0)), at[at >= 0]
        step = np.repeat(replica.place[at], pc.list_value_length(rows["layers"]).to_numpy())
        columns = {
            "micro_batch": np.zeros(len(step), np.int64),
            "layer": pc.list_flatten(rows["layers"]),
            "expert_tokens": pc.list_flatten(rows["tokens"]),
        }
        tables.append(keyed(pa.table(columns), replica, step))
    return _ranks_added(pa.concat_tables(tables)) if tables else pa.table({})


def _ranks_added(experts: pa.Table) -> pa.Table:
    """One row a step and layer, in order: ranks that split its tokens wrote one each."""
    keys = TABLES["experts"].key
    experts = experts.take(pc.sort_indices(experts, [(k, "ascending") for k in keys]))
    numbers = np.stack([experts[k].to_numpy() for k in keys if k != "cluster"])
    first = np.flatnonzero(np.append(True, (numbers[:, 1:] != numbers[:, :-1]).any(axis=0)))
    if len(experts) == 0 or len(first) == len(experts):
        return experts
    counts = np.add.reduceat(np.stack(experts["expert_tokens"].to_numpy()), first)
    at = experts.column_names.index("expert_tokens")
    return experts.take(first).set_column(at, "expert_tokens", pa.array(list(counts)))


def spans_table(spool: Spool, replicas: list[Replica], zero_s: float) -> pa.Table:
    """The collectives of every rank in every completed step."""
    tables = []
    for replica, name in _files(spool, "spans", replicas):
        rows = spool.rows(name)
        step = rows["step"].to_numpy()
        place = np.append(replica.place, -1)[replica.rows_of(step)]
        dummy = np.flatnonzero(step < 0)[: len(replica.dummy_place)]  # they come in order
        place[dummy] = replica.dummy_place[: len(dummy)]
        rows, place = rows.filter(pa.array(place >= 0)), place[place >= 0]
        calls = pc.list_value_length(rows["stages"]).to_numpy()
        columns = {
            "rank": np.full(calls.sum(), int(name.split(".")[2])),
            "layer": pc.list_flatten(rows["layers"]),
            "micro_batch": np.zeros(calls.sum(), np.int64),
            "stage": pc.list_flatten(rows["stages"]),
            "group": pc.list_flatten(rows["groups"]),
            "bytes": pc.list_flatten(rows["bytes"]),
            "start_s": pc.subtract(pc.list_flatten(rows["start_s"]), zero_s),
            "end_s": pc.subtract(pc.list_flatten(rows["end_s"]), zero_s),
        }
        tables.append(keyed(pa.table(columns), replica, np.repeat(place, calls)))
    found = pa.concat_tables(tables) if tables else pa.table({})
    order = [(k, "ascending") for k in ("replica", "step", "rank", "start_s")]
    return found.take(pc.sort_indices(found, order)) if len(found) else found


def _files(spool: Spool, stream: str, replicas: list[Replica]) -> list[tuple[Replica, str]]:
    by_index = {replica.index: replica for replica in replicas}
    return [(by_index[int(name.split(".")[1])], name) for name in spool.names(stream)]
