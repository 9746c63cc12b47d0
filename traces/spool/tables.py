"""The tables of a bundle from the rows of its schedulers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.schema import TABLES
from traces.spool.layers import experts_table, spans_table
from traces.spool.replica import CLUSTER, Floats, Ints, Replica, keyed
from traces.spool.streams import Spool
from traces.spool.transfers import transfers_table

_STATUS = {
    "FINISHED_STOPPED": "finished",
    "FINISHED_LENGTH_CAPPED": "finished",
    "FINISHED_REPETITION": "finished",
    "FINISHED_ABORTED": "aborted",
    "FINISHED_IGNORED": "rejected",
    "FINISHED_ERROR": "failed",
}


def spool_tables(
    spool: Spool, replicas: list[Replica], names: list[list[str]]
) -> tuple[dict[str, pa.Table], float]:
    """Return the bundle's tables and its zero on the server's monotonic clock, in seconds.

    ``names`` are the external ids by replica and request number. The zero is the earliest
    arrival, or the first thing recorded if that came before.
    """
    routing = _routing_rows(spool)
    zero_s = min(
        [
            *(x for r in replicas for x in _arrivals_s(r)),
            *(x for r in replicas for x in r.steps.column("start_s").to_numpy()[:1]),
            *(x for r in replicas for x in r.dummies[0][:1]),
            *(x for x in routing.column("time_s").to_pylist()),
        ],
        default=0.0,
    )
    named = list(zip(replicas, names, strict=True))
    requests = pa.concat_tables(_requests(r, n, zero_s) for r, n in named)
    tables = {
        "requests": requests.take(pc.sort_indices(requests, [("arrival_s", "ascending")])),
        "steps": pa.concat_tables(_steps(r, zero_s) for r in replicas),
        "step_requests": pa.concat_tables(_step_requests(r, n) for r, n in named),
        "experts": experts_table(spool, replicas),
        "spans": spans_table(spool, replicas, zero_s),
        "transfers": transfers_table(spool, replicas, names, zero_s),
        "routing": _routing(routing, replicas, names, zero_s),
    }
    return {k: _typed(k, v) for k, v in tables.items() if len(v) or k == "requests"}, zero_s


def prompt_rows(replica: Replica) -> npt.NDArray[np.bool_]:
    """Which of the replica's step rows count as prefill: those within the prompt.

    A row that starts inside the prompt is a prefill row as a whole, also when a request
    that was preempted recomputes its prompt and its output in one go.
    """
    prompt = replica.added.column("prompt_tokens").to_numpy()
    return replica.computed < prompt[replica.request]  # type: ignore[no-any-return]


def _arrivals_s(replica: Replica) -> Floats:
    """Arrival on the monotonic clock; never after queueing (a stepped clock is noted)."""
    age_s: Floats = replica.added.column("age_s").to_numpy()
    queued_s: Floats = replica.added.column("time_s").to_numpy()
    return queued_s - np.maximum(age_s, 0.0)


def _requests(replica: Replica, names: list[str], zero_s: float) -> pa.Table:
    added, n = replica.added, len(replica.added)
    left = replica.left.take(pa.array(replica.left_of, mask=replica.left_of < 0))
    start_s, end_s = (replica.steps.column(c).to_numpy() for c in ("start_s", "end_s"))
    every = np.ones(len(replica.request), bool)
    emitted = np.bincount(replica.request, replica.emitted, n).astype(np.int64)
    status = [_STATUS.get(s, "failed") if s else "unfinished" for s in left["status"].to_pylist()]
    return pa.table(
        {
            "request_id": pa.array(names, pa.string()),
            "arrival_s": _arrivals_s(replica) - zero_s,
            "prompt_tokens": added["prompt_tokens"],
            "output_tokens": pc.coalesce(left["output_tokens"], pa.array(emitted)),
            "cached_tokens": _whole(replica.of_first(every, replica.computed.astype(float))),
            "priority": added["priority"],
            "block_hashes": _hashes(replica),
            "cluster": pa.array([CLUSTER] * n, pa.string()),
            "replica": np.full(n, replica.index),
            "queued_s": added["time_s"].to_numpy() - zero_s,
            "scheduled_s": _times(replica.of_first(every, start_s[replica.step]) - zero_s),
            "first_token_s": _times(
                replica.of_first(replica.emitted > 0, end_s[replica.step]) - zero_s
            ),
            "finished_s": pc.subtract(left["time_s"], zero_s),
            "preemptions": pc.coalesce(left["preemptions"], pa.array(_preemptions(replica))),
            "status": pa.array(status, pa.string()),
        }
    )


def _preemptions(replica: Replica) -> Ints:
    lists = ("preempted_before", "preempted")
    numbers = [pc.list_flatten(replica.steps.column(c)).to_numpy() for c in lists]
    return np.bincount(np.concatenate(numbers), minlength=len(replica.added))


def _hashes(replica: Replica) -> pa.Array:
    """Block hashes of each request: of its prompt when it came, of its output when it left."""
    owner = pa.concat_arrays([t["request"].combine_chunks() for t in (replica.added, replica.left)])
    lists = pa.concat_arrays([t["hashes"].combine_chunks() for t in (replica.added, replica.left)])
    order = np.argsort(owner.to_numpy(), kind="stable")
    lengths = np.bincount(
        owner.to_numpy(), pc.list_value_length(lists).to_numpy(), len(replica.added)
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, lists.take(pa.array(order)).flatten())


def _steps(replica: Replica, zero_s: float) -> pa.Table:
    steps, n = replica.steps, len(replica.steps)
    prefill = np.bincount(
        replica.step, np.where(prompt_rows(replica), replica.tokens, 0), n
    ).astype(np.int64)
    total = np.bincount(replica.step, replica.tokens, n).astype(np.int64)
    real = {
        "start_s": steps["start_s"].to_numpy() - zero_s,
        "end_s": steps["end_s"].to_numpy() - zero_s,
        "forward_s": _times(replica.forward_s),
        "prefill_tokens": prefill,
        "decode_tokens": total - prefill,
        "padded_tokens": pc.coalesce(steps["padded_tokens"], pa.array(total)),
        "running": steps["running"],
        "waiting": steps["waiting"],
        "free_blocks": steps["free_blocks"],
        "preempted": pc.list_value_length(steps["preempted"]).cast(pa.int64()),
    }
    table = pa.table(real)
    if (m := replica.dummies.shape[1]) > 0:
        start_s, duration_s = replica.dummies
        dummy = {
            "start_s": start_s - zero_s,
            "end_s": start_s - zero_s + duration_s,
            "forward_s": duration_s,
            **{c: np.zeros(m, np.int64) for c in ("prefill_tokens", "decode_tokens")},
            **{c: np.zeros(m, np.int64) for c in ("running", "waiting", "preempted")},
        }
        table = pa.concat_tables([table, pa.table(dummy)], promote_options="default")
        table = table.append_column("dummy", pa.array(np.arange(n + m) >= n))
    place = np.concatenate([replica.place, replica.dummy_place])
    return keyed(table.take(np.argsort(place)), replica, np.arange(len(place)))


def _step_requests(replica: Replica, names: list[str]) -> pa.Table:
    ids = pa.array(names, pa.string())
    table = pa.table(
        {
            "request_id": ids.take(pa.array(replica.request)),
            "scheduled_tokens": replica.tokens,
            "computed_tokens": replica.computed,
            "emitted_tokens": replica.emitted,
        }
    )
    return keyed(table, replica, replica.place[replica.step])


def _routing_rows(spool: Spool) -> pa.Table:
    empty = spool.rows("routing.none")
    return pa.concat_tables([empty, *(spool.rows(name) for name in spool.names("routing"))])


def _routing(
    rows: pa.Table, replicas: list[Replica], names: list[list[str]], zero_s: float
) -> pa.Table:
    external: dict[str, str] = {}
    for replica, own in zip(replicas, names, strict=True):
        external |= zip(replica.ids, own, strict=True)
    chosen = [external.get(i) for i in rows["id"].to_pylist()]
    table = pa.table(
        {
            "request_id": pa.array(chosen, pa.string()),
            "time_s": rows["time_s"].to_numpy() - zero_s,
            "cluster": pa.array([CLUSTER] * len(rows), pa.string()),
            "replica": rows["replica"],
            "client": rows["client"],
            "clients": rows["clients"],
            "start_index": rows["start_index"],
            "in_flight": rows["in_flight"],
            "waiting": rows["waiting"],
            "running": rows["running"],
            "kv_usage_frac": rows["kv_usage"],
        }
    )
    table = table.filter(pc.is_valid(table["request_id"]))  # chosen, but never arrived there
    return table.take(pc.sort_indices(table, [("time_s", "ascending")]))


def _typed(name: str, table: pa.Table) -> pa.Table:
    return table.cast(TABLES[name].arrow_schema(table.column_names))


def _times(values: Floats) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _whole(values: Floats) -> pa.Array:
    return pa.array(np.nan_to_num(values).astype(np.int64), mask=np.isnan(values))
