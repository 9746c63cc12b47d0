"""The values each metric takes in a bundle, over the requests that are compared.

Request metrics are ``traces.metrics``'; those of steps are, over the steps that ran tokens
between the first compared arrival and the last compared finish:

step_time   end - start
batch_size  requests running after schedule()
kv_use      1 - free_blocks / (num_gpu_blocks - 1), as vLLM reports it: one block is reserved

throughput is one number a run: output tokens over the time from the first arrival to the
last finish.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.metrics import METRICS, Floats, column, inter_token_latencies, request_metrics
from validation.pairing import Rows

_REQUEST_COLUMNS = (
    "request_id", "arrival_s", "sent_s", "output_tokens", "scheduled_s", "first_token_s",
    "finished_s", "status", "token_times_s", "prefill_finished_s", "transfer_start_s",
    "transfer_end_s", "decode_scheduled_s", "decode_replica",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric that is compared: its label, unit (``s``, ``requests``, ...) and formula.

    ``per`` says what one value belongs to: request (paired by id), token, step or run.
    """

    name: str
    label: str
    unit: str
    formula: str
    per: str = "step"


_TOKENS = ("itl",)
COMPARED: dict[str, Metric] = {
    m.name: m
    for m in (
        *(
            Metric(m.name, m.label, "s", m.formula, "token" if m.name in _TOKENS else "request")
            for m in METRICS.values()
        ),
        Metric("step_time", "Step time", "s", "end - start of steps that ran tokens"),
        Metric("batch_size", "Batch size", "requests", "requests running in a step"),
        Metric("kv_use", "KV use", "frac", "1 - free_blocks / (num_gpu_blocks - 1), by step"),
        Metric(
            "throughput", "Throughput", "tokens/s",
            "output tokens / (last finish - first arrival)", "run",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """A bundle cut down to the compared requests, row for row as they are paired."""

    bundle: Bundle
    first_s: float
    last_s: float


def view(bundle: Bundle, rows: Rows) -> View:
    """Cut ``bundle`` down to the requests in ``rows``, in that order."""
    requests = bundle.requests
    kept = [name for name in _REQUEST_COLUMNS if name in requests.column_names]
    requests = requests.select(kept)
    if len(rows) != len(requests) or (np.diff(rows) != 1).any():
        requests = requests.take(pa.array(rows))
    data = {"requests": requests}
    if "step_requests" in bundle and "token_times_s" not in requests.column_names:
        table = bundle.table("step_requests")
        ids = requests.column("request_id").combine_chunks()
        data["step_requests"] = table.filter(pc.is_in(table.column("request_id"), value_set=ids))
    start, finish = column(requests, "arrival_s"), column(requests, "finished_s")
    whole = Bundle(bundle.path, bundle.manifest, data)
    return View(whole, float(np.min(start)), float(np.nanmax(finish)))


def samples(seen: View) -> dict[str, Floats]:
    """Values of every metric the bundle can tell, ``{metric: (n,)}`` in ``Metric.unit``.

    Metrics of requests have one value a compared request, NaN where it has none; tokens and
    steps come in the order of time.
    """
    requests = seen.bundle.requests
    values = request_metrics(seen.bundle)
    values["itl"] = inter_token_latencies(seen.bundle)
    values |= step_samples(seen)
    duration_s = seen.last_s - seen.first_s
    if duration_s > 0:
        tokens = float(column(requests, "output_tokens").sum())
        values["throughput"] = np.array([tokens / duration_s])
    return {name: v for name in COMPARED if (v := values.get(name)) is not None and _any(v)}


def step_samples(seen: View) -> dict[str, Floats]:
    """``step_time``, ``batch_size`` and ``kv_use``, each ``(n_steps,)`` in order of start."""
    steps = live_steps(seen)
    if steps is None:
        return {}
    values = {
        "step_time": column(steps, "end_s") - column(steps, "start_s"),
        "batch_size": column(steps, "running"),
    }
    blocks = usable_blocks(seen.bundle, steps)
    if blocks is not None:
        values["kv_use"] = 1 - column(steps, "free_blocks") / blocks
    return values


def live_steps(seen: View) -> pa.Table | None:
    """Steps that ran tokens while compared requests were there, in order of start."""
    if "steps" not in seen.bundle:
        return None
    steps = seen.bundle.table("steps")
    start = column(steps, "start_s")
    tokens = column(steps, "prefill_tokens") + column(steps, "decode_tokens")
    kept = (tokens > 0) & (start >= seen.first_s) & (start <= seen.last_s)
    if "dummy" in steps.column_names:
        kept &= ~pc.fill_null(steps.column("dummy"), False).to_numpy().astype(bool)
    rows = np.flatnonzero(kept)
    return steps.take(pa.array(rows[np.argsort(start[rows], kind="stable")]))


def usable_blocks(bundle: Bundle, steps: pa.Table) -> Floats | None:
    """KV blocks requests can use on the replica of each step; None where not recorded."""
    if "free_blocks" not in steps.column_names:
        return None
    total: dict[str, int] = {}
    clusters = bundle.manifest.deployment.get("clusters")
    for cluster in clusters if isinstance(clusters, list) else ():
        engine = cluster.get("engine") or {} if isinstance(cluster, dict) else {}
        blocks = engine.get("num_gpu_blocks") if isinstance(engine, dict) else None
        if isinstance(blocks, int) and blocks > 1:
            total[str(cluster.get("name", "main"))] = blocks - 1
    names = steps.column("cluster").combine_chunks().dictionary_encode()
    known: npt.NDArray[np.float64] = np.array(
        [total.get(name, np.nan) for name in names.dictionary.to_pylist()], np.float64
    )
    return None if np.isnan(known).any() or not len(known) else known[names.indices.to_numpy()]


def finite(values: Floats) -> Floats:
    """The values that are numbers."""
    kept: Floats = values[np.isfinite(values)]
    return kept


def _any(values: Floats) -> bool:
    return bool(np.isfinite(values).any())
