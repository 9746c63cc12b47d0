"""Attention of a batch as a table over four numbers: chunk, its context, decodes, their context.

A batch is taken as one prefill chunk of ``query`` tokens after ``context`` tokens, and
``decodes`` requests with one token each after ``decode_context`` tokens on average. Where
the kernels were measured on such batches (``attention_mixed``) the table is theirs; a cell
that was not measured is filled by a model of the measured ones:

    seconds = (c0 + c1 q c + c2 q^2 / 2 + c3 n k + c4 c + c5 n + c6 q) x exp(residual)

non-negative c (FLOPs of the chunk, bytes of KV, launch), and a learned log-residual. Kernels
of a served workload, whose decodes hardly ever have equal contexts, are such points too, each at
its mean context, but no grid: there the table is the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.step_time.layers import AttentionCall
from simulator.step_time.select_kernels import SKEWED

Floats = npt.NDArray[np.float64]
AXIS = 12  # points above 0 on an axis of a table that is no grid of measured ones


@dataclass(frozen=True, slots=True)
class AttentionGrid:
    """``seconds[i, j, k, l]`` at point i of the first axis, j of the second, and so on.

    ``axes`` are query, context, decodes and decode_context; each begins with 0: no chunk, no
    context, no decode. ``measured`` is the share of cells that are, ``spread`` the factor of
    unequal contexts: 1 + spread[m, k, l] x (their coefficient of variation), for m = 0
    without and 1 with a chunk, up to a variation of ``spread_most``.
    """

    axes: tuple[Floats, Floats, Floats, Floats]
    seconds: Floats
    measured: float
    spread: Floats
    spread_most: float


def measured_grid(kernels: pa.Table, call: AttentionCall) -> AttentionGrid | None:
    """The grid of one attention shape, None if its mixed batches were not measured."""
    if call.family != "gqa" or "query_lens" not in kernels.column_names:
        return None
    rows = _shape_rows(kernels, call)
    every = _points(rows)
    equal = every[every[:, 5] == 0.0]
    # unequal contexts, and not one batch of equal ones
    served = len(every) > len(equal) and not (equal[:, 2] > 1).any()
    if served:
        equal = every
    if not len(equal):
        return None
    points, seconds = equal[:, :4], equal[:, 4]
    axes = tuple(_axis(points[:, i], AXIS if served else 0) for i in range(4))
    grid = np.full([len(a) for a in axes], np.nan)
    if not served:
        grid[tuple(np.searchsorted(axes[i], points[:, i]) for i in range(4))] = seconds
    known = np.isfinite(grid)
    cells = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
    query, context, decodes, length = cells.T
    wanted = ((query > 0) | (context == 0)) & ((decodes > 0) | (length == 0))
    wanted &= query + decodes > 0
    filled = grid.copy()
    if (wanted & ~known.ravel()).any():
        predict = _fit(points, seconds)
        filled = np.where(known.ravel(), grid.ravel(), predict(cells)).reshape(grid.shape)
    filled[0, :, 0, :] = 0.0  # nothing to do
    filled[0, 1:] = filled[0, :1]  # no chunk: its context means nothing
    filled[:, :, 0, 1:] = filled[:, :, 0, :1]
    spread, most = _spread(rows, axes[2], axes[3])
    if served:  # the model has seen unequal contexts at their means
        most = float(every[:, 5].max())
    return AttentionGrid(axes, filled, float(known.mean()), spread, most)  # type: ignore[arg-type]


def _axis(values: Floats, most: int) -> Floats:
    """0 and the values, or ``most`` of even ratios from least to largest if there are more.

    >>> _axis(np.array([8.0, 2.0, 4.0, 3.0]), 2).tolist()
    [0.0, 2.0, 8.0]
    """
    found = np.unique(np.append(values, 0.0))
    if most and len(found) > most + 1:
        found = np.unique(np.append(np.geomspace(found[1], found[-1], most), 0.0))
    return found


def _shape_rows(kernels: pa.Table, call: AttentionCall) -> pa.Table:
    wanted = {"heads": call.heads, "kv_heads": call.kv_heads, "head_dim": call.head_dim}
    families = pa.array(["attention_prefill", "attention_decode", "attention_mixed"])
    keep = pc.is_in(kernels.column("operator"), families)
    for name, value in wanted.items():
        keep = pc.and_kleene(keep, pc.equal(kernels.column(name), value))
    keep = pc.and_kleene(keep, pc.equal(pc.fill_null(kernels.column("window"), 0), call.window))
    return kernels.filter(keep)


def _batches(rows: pa.Table) -> list[tuple[list[int], list[int], float, bool]]:
    """(query lengths, contexts, seconds, labelled as skewed) of each row."""
    found = []
    for row in rows.select(
        [n for n in ("batch", "query_tokens", "context_tokens", "query_lens", "context_lens",
                     "duration_s", "layer", "operator") if n in rows.column_names]
    ).to_pylist():  # fmt: skip
        queries, contexts = row.get("query_lens"), row.get("context_lens")
        if queries is None:
            n = int(row["batch"])
            query = row.get("query_tokens")
            queries = [int(query if query is not None else 1)] * n
            contexts = [int(row["context_tokens"])] * n
        found.append((queries, contexts, row["duration_s"], row.get("layer") == SKEWED))
    return found


def _features(queries: list[int], contexts: list[int]) -> tuple[float, ...] | None:
    """(query, context, decodes, mean decode context, its variation); None beyond one chunk."""
    many = [i for i, q in enumerate(queries) if q > 1]
    if len(many) > 1:
        return None
    rest = np.array([c for i, c in enumerate(contexts) if i not in many], float)
    query, context = (queries[many[0]], contexts[many[0]]) if many else (0, 0)
    mean = float(rest.mean()) if len(rest) else 0.0
    variation = float(rest.std() / mean) if mean else 0.0
    return float(query), float(context), float(len(rest)), mean, variation


def _points(rows: pa.Table) -> Floats:
    """Batches of a chunk at most, ``(n, 6)``.

    Query, context, decodes, their mean context, seconds, variation of the decodes' contexts.
    """
    found = []
    for queries, contexts, seconds, skewed in _batches(rows):
        f = _features(queries, contexts)
        if f is not None and not skewed:
            found.append((*f[:4], seconds, f[4]))
    return np.array(found, float).reshape(-1, 6)


def _terms(points: Floats) -> Floats:
    q, c, n, k = points.T
    return np.stack([np.ones_like(q), q * c, q * q / 2, n * k, c, n, q], axis=1)


def _logs(points: Floats) -> Floats:
    q, c, n, k = points.T
    values = [q, c, n, k, q * c + q * q / 2, n * k, n * k + c + q]
    logs: Floats = np.log1p(np.stack(values, axis=1))
    return logs


def _fit(points: Floats, seconds: Floats) -> Callable[[Floats], Floats]:
    """A model of measured points: what it says of others, ``(n, 4)`` to ``(n,)`` seconds."""
    from scipy.optimize import nnls

    from simulator.operators.boosting import Boosting, fit_trees

    terms = _terms(points)
    scale = np.maximum(terms.max(axis=0), 1e-12)
    coefficients = nnls(terms / scale / seconds[:, None], np.ones(len(seconds)))[0] / scale
    base = np.maximum(terms @ coefficients, 1e-9)
    residual = fit_trees(
        _logs(points), np.log(seconds / base), Boosting(trees=400, rate=0.08, leaves=31)
    )

    def predict(cells: Floats) -> Floats:
        found: Floats = np.maximum(_terms(cells) @ coefficients, 1e-9) * np.exp(
            residual.predict(_logs(cells))
        )
        return found

    return predict


def _spread(rows: pa.Table, decodes: Floats, contexts: Floats) -> tuple[Floats, float]:
    """What unequal contexts cost: least squares of (ratio - 1) on their variation.

    One slope for each batch size and (nearest) mean context, ``(2, n_decodes, n_contexts)``.
    The ratio is to the row of equal contexts with the same mean in the same sweep, so that a
    sweep's own offset does not enter. Where a size or context was not measured the nearest
    one's slope stands.
    """
    pairs: dict[tuple[float, ...], dict[float, float]] = {}
    for queries, lengths, seconds, skewed in _batches(rows):
        f = _features(queries, lengths)
        if f is not None and skewed and f[2] >= 2:
            pairs.setdefault((f[0], f[1], f[2], round(f[3])), {})[f[4]] = seconds
    shape = (2, len(decodes), len(contexts))
    products, squares = np.zeros(shape), np.zeros(shape)
    most = 0.0
    for (query, _, n, mean), seen in pairs.items():
        if 0.0 not in seen:
            continue
        at = (int(query > 0), _nearest(decodes, n), _nearest(contexts, mean))
        for variation, seconds in seen.items():
            most = max(most, variation)
            products[at] += (seconds / seen[0.0] - 1) * variation
            squares[at] += variation * variation
    slopes = np.divide(products, squares, out=np.full(shape, np.nan), where=squares > 0)
    slopes[:, :2] = 0.0  # none or one decode: nothing to differ
    return np.stack([_filled(part) for part in slopes]), most


def _nearest(axis: Floats, value: float) -> int:
    """Index of the nearest point above 0, in the logarithm."""
    return 1 + int(np.argmin(np.abs(np.log(axis[1:]) - np.log(value))))


def _filled(slopes: Floats) -> Floats:
    """Missing slopes from the nearest context of the batch size, else the next smaller size."""
    filled = slopes.copy()
    for i, row in enumerate(slopes):
        known = np.flatnonzero(np.isfinite(row))
        if len(known):
            nearest = np.abs(np.arange(len(row))[:, None] - known).argmin(axis=1)
            filled[i] = row[known[nearest]]
        else:
            filled[i] = filled[i - 1] if i else 0.0
    return filled
