"""Metric definitions, the same for measured and simulated bundles.

The formulas are those of ``vllm bench serve`` (vllm/benchmarks/serve.py,
``calculate_metrics``), in seconds:

ttft   first_token - start                       every request with a first token
e2e    finished - start                          every finished request
tpot   (e2e - ttft) / (output_tokens - 1)        finished requests with >= 2 output tokens
itl    gaps between successive tokens            pooled over requests
queue  scheduled - start                         time before the first schedule (engine only)

Where prefill and decode are apart, the parts of the way to the last token; the first token
that the client gets is that of the first decode step:

prefill        prefill_finished - scheduled
transfer_wait  transfer_start - prefill_finished     the proxy, and the queue for KV blocks
transfer       transfer_end - transfer_start
decode_queue   decode_scheduled - transfer_end       the KV has come, the next step has not
decode         finished - decode_scheduled

``start`` is ``arrival_s`` in an engine's bundle and ``sent_s`` in a client's, where it is
what the client's stop-watch shows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """Name, label and formula of a per-request metric; values are in seconds."""

    name: str
    label: str
    formula: str


METRICS: dict[str, MetricSpec] = {
    m.name: m
    for m in (
        MetricSpec("ttft", "TTFT", "first_token - start"),
        MetricSpec("tpot", "TPOT", "(e2e - ttft) / (output_tokens - 1), output_tokens >= 2"),
        MetricSpec("itl", "ITL", "gaps between successive tokens of a request, pooled"),
        MetricSpec("e2e", "E2EL", "finished - start"),
        MetricSpec("queue", "Queue time", "scheduled - start"),
        MetricSpec("prefill", "Prefill", "prefill_finished - scheduled"),
        MetricSpec("transfer_wait", "Transfer wait", "transfer_start - prefill_finished"),
        MetricSpec("transfer", "KV transfer", "transfer_end - transfer_start"),
        MetricSpec("decode_queue", "Decode queue", "decode_scheduled - transfer_end"),
        MetricSpec("decode", "Decode", "finished - decode_scheduled"),
    )
}


HANDOVER = {
    "prefill": ("scheduled", "prefill_finished"),
    "transfer_wait": ("prefill_finished", "transfer_start"),
    "transfer": ("transfer_start", "transfer_end"),
    "decode_queue": ("transfer_end", "decode_scheduled"),
    "decode": ("decode_scheduled", "finished"),
}


def column(requests: pa.Table, name: str) -> Floats:
    """A numeric column as floats, NaN where null or absent; shape ``(n_requests,)``."""
    if name not in requests.column_names:
        return np.full(len(requests), np.nan)
    values: Floats = requests.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def request_metrics(bundle: Bundle) -> dict[str, Floats]:
    """Per-request metrics of a bundle, in seconds, NaN where a request has none.

    Returns all of ``METRICS`` but ``itl``, each ``(n_requests,)`` in table order.
    """
    requests = bundle.requests
    start = column(requests, "arrival_s")
    if bundle.manifest.vantage == "client":
        sent = column(requests, "sent_s")
        start = np.where(np.isnan(sent), start, sent)
    ttft = column(requests, "first_token_s") - start
    e2e = column(requests, "finished_s") - start
    if "status" in requests.column_names:
        finished = np.asarray(requests.column("status").to_pylist(), object) == "finished"
        e2e = np.where(finished, e2e, np.nan)
    tokens = column(requests, "output_tokens")
    several = tokens >= 2
    tpot = np.where(several, (e2e - ttft) / np.where(several, tokens - 1, 1), np.nan)
    return {
        "ttft": ttft,
        "tpot": tpot,
        "e2e": e2e,
        "queue": column(requests, "scheduled_s") - start,
        **{
            name: column(requests, f"{end}_s") - column(requests, f"{begin}_s")
            for name, (begin, end) in HANDOVER.items()
        },
    }


def inter_token_latencies(bundle: Bundle) -> Floats:
    """All gaps between successive tokens, pooled, in seconds; shape ``(n_gaps,)``.

    In the order of the tokens that end them, whichever request they belong to. From
    ``token_times_s`` in a client's bundle, else from the step ends of ``step_requests``;
    empty where the bundle recorded neither. A step that emits n tokens counts n - 1 zero
    gaps, as a stream does that carries them in one chunk. Where prefill and decode are apart,
    the token of the prefill side goes to nobody.
    """
    requests = bundle.requests
    if "token_times_s" in requests.column_names:
        times = requests.column("token_times_s").combine_chunks()
        flat = times.flatten().to_numpy()
        owner = pc.list_parent_indices(times).to_numpy()
        return _gaps(flat, owner)
    if not ("step_requests" in bundle and "steps" in bundle):
        return np.empty(0)
    return _engine_gaps(bundle)


def _engine_gaps(bundle: Bundle) -> Floats:
    rows, steps = bundle.table("step_requests"), bundle.table("steps")
    if "emitted_tokens" not in rows.column_names:
        return np.empty(0)
    keys = ["cluster", "replica", "step"]
    joined = rows.select([*keys, "request_id", "emitted_tokens"]).join(
        steps.select([*keys, "end_s"]), keys=keys
    )
    emitted = pc.fill_null(joined.column("emitted_tokens"), 0).to_numpy()
    ids = joined.column("request_id").combine_chunks().dictionary_encode()
    owner, end = ids.indices.to_numpy(), joined.column("end_s").to_numpy()
    if "decode_replica" in bundle.requests.column_names:
        emitted = np.where(end < _first_token_s(bundle, joined["request_id"]), 0, emitted)
    order = np.lexsort((end, owner))
    order = np.repeat(order, emitted[order])
    return _gaps(end[order], owner[order])


def _first_token_s(bundle: Bundle, ids: pa.ChunkedArray) -> Floats:
    """When the first token that its client gets left the engine, for each of ``ids``."""
    requests = bundle.requests
    row = pc.index_in(ids, value_set=requests["request_id"].combine_chunks())
    return column(pa.table({"s": requests["first_token_s"].combine_chunks().take(row)}), "s")


def _gaps(times: Floats, owner: npt.NDArray[np.integer]) -> Floats:
    """Gaps within each owner's run of ``times``, in the order of their later ends."""
    same = np.diff(owner) == 0
    gaps: Floats = np.diff(times)[same]
    return gaps[np.argsort(times[1:][same], kind="stable")]
