"""Steps of a capture as a fit takes them: shapes and times, without warm-up and dummy batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.deployment import parse_deployment
from simulator.model import ModelSpec, model_from_config
from simulator.step_time.base import BatchShape
from traces.bundle import Bundle
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
WARM_UP = "warmup-"


@dataclass(slots=True)
class Samples:
    """Steps of one capture that can be fitted, one element per step.

    ``forward_s``, ``host_s`` and ``gap_s`` are seconds, gap NaN where the engine idled;
    ``start_s`` is when the step began.
    """

    shapes: list[BatchShape]
    step: npt.NDArray[np.int64]
    start_s: Floats
    forward_s: Floats
    host_s: Floats
    gap_s: Floats
    frontend_s: Floats  # (n_requests, 2): least and largest delay that agrees with the record


def samples_of(bundle: Bundle, cluster: str | None = None) -> Samples:
    """Read the steps of a capture, or of one of its clusters. Raises TraceError for none."""
    for table in ("steps", "step_requests"):
        if table not in bundle:
            raise TraceError(f"{bundle.path}: no {table}.parquet: steps cannot be fitted")
    keys = [key for key in _replicas(bundle) if cluster in (None, key[0])]
    if not keys:
        raise TraceError(f"{bundle.path}: no step of a cluster {cluster!r}")
    engines: dict[tuple[str, int], list[Samples]] = {}
    for name, replica in keys:
        engine = name, replica // _lock_step_ranks(bundle, name)
        engines.setdefault(engine, []).append(_replica_samples(bundle, name, replica))
    samples = _joined([_together(ranks) if len(ranks) > 1 else ranks[0]
                       for ranks in engines.values()])  # fmt: skip
    if not samples.shapes:
        raise TraceError(f"{bundle.path}: no step to fit")
    return samples


def _joined(parts: Sequence[Samples]) -> Samples:
    merged = {
        f.name: np.concatenate([getattr(p, f.name) for p in parts])
        for f in fields(Samples)
        if f.name != "shapes"
    }
    return Samples([s for p in parts for s in p.shapes], **merged)


def _together(ranks: Sequence[Samples]) -> Samples:
    """Ranks that step together: of each step the fullest's shape, and the slowest's times.

    What the others ran is noted in it; a rank without requests ran a dummy batch of one token.
    """
    every = _joined(ranks)
    tokens = np.array([shape.tokens for shape in every.shapes], np.int64)
    order = np.lexsort((-tokens, every.step))
    firsts = np.flatnonzero(np.diff(every.step[order], prepend=-1))
    fullest = order[firsts]
    there = np.diff(firsts, append=len(order))
    totals = np.add.reduceat(tokens[order], firsts) + len(ranks) - there
    prefill = np.array([shape.prefill_tokens for shape in every.shapes], np.int64)
    prefills = np.add.reduceat(prefill[order], firsts)
    for i, total, of_prompts in zip(fullest, totals, prefills, strict=True):
        every.shapes[i].engine_tokens = int(total)
        every.shapes[i].engine_prefill = int(of_prompts)
        every.shapes[i].most_tokens = int(tokens[i])
    slowest = {
        name: np.fmax.reduceat(getattr(every, name)[order], firsts)
        for name in ("forward_s", "host_s", "gap_s")
    }
    return Samples(
        [every.shapes[i] for i in fullest], every.step[fullest], every.start_s[fullest],
        **slowest, frontend_s=every.frontend_s,
    )  # fmt: skip


def _lock_step_ranks(bundle: Bundle, cluster: str) -> int:
    """Data-parallel ranks of an engine of a cluster that step together: those of MoE models."""
    deployment = parse_deployment(bundle.manifest.deployment, str(bundle.path))
    engine = next(c.engine for c in deployment.clusters if c.name == cluster)
    return engine.data_parallel_size if model_of(bundle).moe is not None else 1


def _replicas(bundle: Bundle) -> list[tuple[str, int]]:
    keys = bundle.table("steps").select(["cluster", "replica"])
    found = keys.group_by(["cluster", "replica"]).aggregate([]).to_pylist()
    return sorted((row["cluster"], row["replica"]) for row in found)


def _replica_samples(bundle: Bundle, cluster: str, replica: int) -> Samples:
    def mine(table: pa.Table) -> pa.Table:
        here = pc.equal(table.column("cluster"), cluster)
        return table.filter(pc.and_(here, pc.equal(table.column("replica"), replica)))

    steps, rows = mine(bundle.table("steps")), mine(bundle.table("step_requests"))
    requests = bundle.requests
    names = rows.column("request_id")
    where = pc.index_in(names, requests.column("request_id").combine_chunks())
    decodes = cluster in _decode_clusters(bundle)
    queued = _column(requests, "decode_queued_s" if decodes else "queued_s")[where.to_numpy()]
    number = steps.column("step").to_numpy()
    index = np.searchsorted(number, rows.column("step").to_numpy())
    shapes = shapes_of(rows, index, len(steps))
    warm = np.zeros(len(steps), bool)
    warm[index[pc.starts_with(names, WARM_UP).to_numpy()]] = True
    if "dummy" in steps.column_names:
        warm |= pc.fill_null(steps.column("dummy"), False).to_numpy()
    start, end = steps.column("start_s").to_numpy(), steps.column("end_s").to_numpy()
    forward, host = _parts(bundle, steps, start, end)
    earliest = np.full(len(steps), np.inf)
    np.minimum.at(earliest, index, queued)
    busy = np.append(earliest[1:] <= end[:-1], False)
    gap = np.where(busy, np.append(start[1:], np.nan) - end, np.nan)
    keep = ~warm
    return Samples(
        [s for s, k in zip(shapes, keep, strict=True) if k],
        number[keep], start[keep], forward[keep], host[keep], np.maximum(gap, 0)[keep],
        np.empty((0, 2)) if decodes else _frontend_bounds(requests, start, end),
    )  # fmt: skip


def _decode_clusters(bundle: Bundle) -> list[str]:
    """Clusters that get requests from another one, not from clients."""
    clusters = bundle.manifest.deployment.get("clusters") or ()
    return [str(c.get("name")) for c in clusters if c.get("role") == "decode"]


def _parts(bundle: Bundle, steps: pa.Table, start: Floats, end: Floats) -> tuple[Floats, Floats]:
    """Split step times into forward and host, seconds."""
    if (np.diff(start) > 0).all() and (start[1:] < end[:-1]).any():
        # Steps overlap: the device's share is the time between completions.
        device = end - np.maximum(start, np.append(-np.inf, end[:-1]))
        return device, np.zeros(len(steps))
    if "forward_s" not in steps.column_names:
        return end - start, np.zeros(len(steps))
    forward = np.minimum(_column(steps, "forward_s"), end - start)
    forward = np.where(np.isnan(forward), end - start, forward)
    return forward, end - start - forward


def _frontend_bounds(requests: pa.Table, start: Floats, end: Floats) -> Floats:
    """Bounds of the delay from arrival to the engine's input queue, ``(n_requests, 2)`` seconds.

    The engine looks into its queue before each step::

        arrival --- look, not there --- look, there: queued
                |<------ least ----->|
                |<------------- largest ------------>|

    An idle engine takes a request at once: the bounds are one.
    """
    arrival, queued = _column(requests, "arrival_s"), _column(requests, "queued_s")
    kept = np.isfinite(queued) & ~pc.starts_with(requests.column("request_id"), WARM_UP).to_numpy()
    arrival, queued = arrival[kept], queued[kept]
    looks = np.searchsorted(start, queued, side="right") - 1
    last = np.maximum(looks, 0)
    idle = (looks < 0) | (end[last] <= arrival)
    largest = queued - arrival
    least = np.where(idle, largest, np.maximum(start[last] - arrival, 0.0))
    return np.stack([least, largest], axis=1)


def shapes_of(rows: pa.Table, index: npt.NDArray[np.int64], steps: int) -> list[BatchShape]:
    """Shape of each of ``steps`` steps from its rows; ``index`` is each row's step."""
    q = rows.column("scheduled_tokens").to_numpy()
    c = rows.column("computed_tokens").to_numpy()
    emitted = _column(rows, "emitted_tokens") > 0
    decode = q == 1

    def total(values: npt.NDArray[np.generic]) -> list[int]:
        sums = np.bincount(index, weights=values.astype(np.float64), minlength=steps)
        return [int(v) for v in sums]

    def most(values: npt.NDArray[np.int64]) -> list[int]:
        largest = np.zeros(steps, np.int64)
        np.maximum.at(largest, index, values)
        return [int(v) for v in largest]

    many = ~decode
    columns = {
        "tokens": total(q),
        "rows": total(np.ones_like(q)),
        "sampled": total(emitted),
        "decodes": total(decode),
        "decode_context": total(c * decode),
        "decode_context_sq": total(c * c * decode),
        "decode_context_max": most(c * decode),
        "prefill_tokens": total(q * many),
        "prefill_tokens_sq": total(q * q * many),
        "prefill_context": total(c * many),
        "prefill_context_sq": total(c * c * many),
        "prefill_context_max": most(c * many),
        "prefill_pairs": total((q * c + q * (q + 1) // 2) * many),
    }
    return [
        BatchShape(**dict(zip(columns, values, strict=True)))
        for values in zip(*columns.values(), strict=True)
    ]


def _column(table: pa.Table, name: str) -> Floats:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    values: Floats = table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def model_of(bundle: Bundle) -> ModelSpec:
    config = bundle.model_config()
    if config is None:
        raise TraceError(f"{bundle.path}: no model config in the bundle")
    return model_from_config(config, str(bundle.path))
