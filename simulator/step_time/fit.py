"""Fit a step profile from captured steps: ``frontier fit B... --out P``.

Each part of a step is regressed on its terms with non-negative coefficients and weights
1 / prediction (noise grows with the step), iterated. At the solution the residuals sum to
zero, so predicted busy time equals the measured one on the steps fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.deployment import parse_deployment
from simulator.model import ModelSpec, model_from_config
from simulator.step_time.base import BatchShape
from simulator.step_time.fit_link import fit_link, link_line
from simulator.step_time.fitted import LAYOUT, RANGED, StepProfile
from simulator.step_time.identify import undetermined
from simulator.step_time.regression import fit_part, frontend_delay, weights_of
from simulator.step_time.terms import HOST_TERMS, Term, forward_terms
from traces.bundle import Bundle, bundle_hash
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
WARM_UP = "warmup-"
RESAMPLES = 100
BLOCK_STEPS = 50


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
    return engine.data_parallel_size if _model_of(bundle).moe is not None else 1


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


def design(shapes: Sequence[BatchShape], terms: dict[str, Term]) -> Floats:
    """Matrix of terms, ``(n_steps, n_terms)``."""
    return np.array([[term(s) for term in terms.values()] for s in shapes], np.float64)


def fit_profile(
    bundles: Sequence[Bundle],
    *,
    cluster: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> StepProfile:
    """Fit one profile from captures of one engine, or of all in a cluster of that name.

    From captures of a prefill and a decode cluster their link too. Raises TraceError if they
    recorded no steps, or are of different models or engines.
    """
    first = bundles[0]
    model = _model_of(first)
    for other in bundles[1:]:
        if _model_of(other) != model:
            raise TraceError(f"{other.path}: another model than {first.path}")
        if other.manifest.engine_version != first.manifest.engine_version:
            raise TraceError(f"{other.path}: another engine version than {first.path}")
    progress("reading steps")
    samples = [samples_of(b, cluster) for b in bundles]
    together = any(shape.engine_tokens for part in samples for shape in part.shapes)
    forward, host = forward_terms(model.moe, together=together), HOST_TERMS
    progress("fitting forward, host and gap")
    parts = {
        "forward": _fit_named(samples, "forward_s", forward),
        "host": _fit_named(samples, "host_s", host),
        "gap": _fit_named(samples, "gap_s", host),
    }
    shapes = [s for part in samples for s in part.shapes]
    frontend = frontend_delay(np.concatenate([s.frontend_s for s in samples]))
    engines = parse_deployment(first.manifest.deployment, str(first.path)).clusters
    fitted = [c for c in engines if cluster in (None, c.name)]
    layouts = [(c.hardware, *(getattr(c.engine, name) for name in LAYOUT)) for c in fitted]
    if len(set(layouts)) != 1:
        names = ", ".join(c.name for c in engines)
        raise TraceError(f"{first.path}: clusters differ, say which to fit with --cluster: {names}")
    frontend_s = frontend or 0.0
    return StepProfile(
        model={f.name: getattr(model, f.name) for f in fields(ModelSpec)
               if f.name in ("model_type", "layers", "hidden", "vocab")},
        engine=first.manifest.engine,
        engine_version=first.manifest.engine_version,
        hardware=fitted[0].hardware,
        layout={name: getattr(fitted[0].engine, name) for name in LAYOUT},
        forward=parts["forward"][0],
        host=parts["host"][0],
        gap=parts["gap"][0],
        frontend_s=frontend_s,
        ranges={n: [min(getattr(s, n) for s in shapes), max(getattr(s, n) for s in shapes)]
                for n in RANGED},
        fitted_on=[{"hash": bundle_hash(b), "name": b.path.name} for b in bundles],
        intervals={name: part[1] for name, part in parts.items()},
        fit={name: part[2] for name, part in parts.items()},
        link=fit_link(bundles, frontend_s) if "transfers" in first else None,
        warnings=[f"{name}: {line}" for name, part in parts.items() for line in part[3]]
        + ([] if frontend is not None else ["no request was queued: frontend_s is 0"]),
    )  # fmt: skip


def _model_of(bundle: Bundle) -> ModelSpec:
    config = bundle.model_config()
    if config is None:
        raise TraceError(f"{bundle.path}: no model config in the bundle")
    return model_from_config(config, str(bundle.path))


def _fit_named(
    samples: Sequence[Samples], part: str, terms: dict[str, Term]
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, float], list[str]]:
    """Coefficients, their 95 % intervals, the error of one part, and what is undetermined.

    Zero terms are left out.
    """
    seconds = np.concatenate([getattr(s, part) for s in samples])
    matrix = design([s for part_ in samples for s in part_.shapes], terms)
    known = np.isfinite(seconds)
    seconds, matrix = seconds[known], matrix[known]
    if not len(seconds) or seconds.max() <= 0:
        return {"step": 0.0}, {}, {"steps": float(len(seconds))}, []
    coefficients = fit_part(matrix, seconds)
    draws = _resampled(matrix, seconds, coefficients)
    predicted = matrix @ coefficients
    kept = [i for i, c in enumerate(coefficients) if c > 0]
    names = list(terms)
    intervals = {
        names[i]: [float(v) for v in np.percentile(draws[:, i], [2.5, 97.5])] for i in kept
    }
    error = {
        "steps": float(len(seconds)),
        "mean_s": float(seconds.mean()),
        "mape": float(np.mean(np.abs(predicted / seconds - 1)[seconds > 0])),
        "total_error": float(predicted.sum() / seconds.sum() - 1),
    }
    doubts = undetermined([names[i] for i in kept], draws[:, kept])
    return {names[i]: float(coefficients[i]) for i in kept}, intervals, error, doubts


def _resampled(matrix: Floats, seconds: Floats, coefficients: Floats) -> Floats:
    """Coefficients refitted on resampled blocks of successive steps, ``(draws, n_terms)``.

    Weights stay those of the fit, so a draw is a sum of the blocks' normal equations.
    """
    from scipy.optimize import nnls

    rng = np.random.default_rng(0)
    scale = np.maximum(matrix.max(axis=0), 1e-12)
    root = np.sqrt(weights_of(matrix @ coefficients, seconds))
    rows = np.column_stack([matrix / scale, seconds]) * root[:, None]
    blocks = np.array_split(rows, max(1, len(seconds) // BLOCK_STEPS))
    squares = np.array([block.T @ block for block in blocks])
    draws = []
    for _ in range(RESAMPLES):
        total = squares[rng.integers(len(blocks), size=len(blocks))].sum(axis=0)
        # a square root of the normal equations: the same least squares in n_terms + 1 rows
        values, vectors = np.linalg.eigh(total)
        reduced = (vectors * np.sqrt(np.maximum(values, 0.0))).T
        draws.append(nnls(reduced[:, :-1], reduced[:, -1], maxiter=10_000)[0] / scale)
    return np.array(draws)


def profile_table(profile: StepProfile) -> str:
    """The fit in a few lines: terms with their intervals, and what they explain."""
    seen = ", ".join(f["name"] for f in profile.fitted_on)
    lines = [
        f"{profile.engine} {profile.engine_version} on {profile.hardware}, "
        f"frontend {profile.frontend_s * 1e3:.2f} ms, {f'fitted on {seen}' if seen else 'unfitted'}"
    ]
    for part in ("forward", "host", "gap"):
        fit = profile.fit[part]
        shown = f"{fit.get('mean_s', 0) * 1e3:.3f} ms mean, MAPE {fit.get('mape', 0):.1%}"
        lines.append(f"{part}: {shown} over {fit['steps']:.0f} steps" if seen else f"{part}:")
        for name, value in getattr(profile, part).items():
            low, high = profile.intervals[part].get(name, [value, value])
            lines.append(
                f"  {name:<18} {value * 1e6:12.4f} us  [{low * 1e6:.4f}, {high * 1e6:.4f}]"
            )
    if profile.link is not None:
        lines.append(link_line(profile.link))
    return "\n".join([*lines, *(f"warning: {w}" for w in profile.warnings)])
