"""Gradient boosting of trees under absolute error, on binned features.

Histogram boosting (Ke et al., LightGBM, NIPS 2017; Friedman, Annals of Statistics 29(5), 2001).
The trees are those of scikit-learn's HistGradientBoostingRegressor, but that of equally promising
leaves the oldest is split first. Under absolute error a gradient is a sign and a Hessian 1, so
histograms hold whole numbers: how many rows a bin has, and how many of them are predicted too high
less those too low. All trees grow in one compiled loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from simulator.operators.trees import Trees

Floats = npt.NDArray[np.float64]

MOST_BINS = 255
TINY = 1e-15  # as scikit-learn, for ties to fall as they do there


@dataclass(frozen=True, slots=True)
class Boosting:
    """How large a boosted model may grow."""

    trees: int
    rate: float
    leaves: int
    penalty: float = 1.0


def fit_trees(features: Floats, target: Floats, how: Boosting) -> Trees:
    """Fit rows ``(n, features)`` to ``target`` ``(n,)``; deterministic, one thread.

    A leaf holds at least one row in 300, so that small tables are not learned by heart.
    """
    columns = [_edges(column) for column in features.T]
    first = np.cumsum([0, *(len(edges) for edges in columns)])
    edges, missing = np.concatenate(columns), np.isnan(features).any(axis=0)
    bins = np.stack(
        [np.searchsorted(e[:-1], c) for e, c in zip(columns, features.T, strict=True)], axis=1
    )
    start = float(np.median(target))
    least = int(np.clip(len(target) // 300, 3, 20))
    count, feature, cut, missing_left, left, right, value = _boost(
        (bins + first[:-1]).astype(np.uint16), first, missing, target, start,
        how.trees, how.rate, how.leaves, how.penalty, least,
    )  # fmt: skip
    used = np.arange(feature.shape[1]) < count[:, None]
    root = (np.cumsum(count) - count).astype(np.int32)
    return Trees(
        start, root, feature[used], edges[cut[used]], missing_left[used],
        (left + root[:, None])[used], (right + root[:, None])[used], value[used],
    )  # fmt: skip


def _edges(column: Floats) -> Floats:
    """Upper ends of a column's bins: the last has none, and then comes that of missing values.

    >>> _edges(np.array([3.0, 1.0, np.nan, 2.0, 1.0])).tolist()
    [1.5, 2.5, inf, inf]
    """
    known = column[~np.isnan(column)]
    values = np.unique(known)
    if len(values) <= MOST_BINS:
        inner = (values[1:] + values[:-1]) / 2
    else:
        share = np.linspace(0, 100, MOST_BINS + 1)[1:-1]
        inner = np.unique(np.percentile(known, share, method="averaged_inverted_cdf"))
    ends: Floats = np.r_[inner, np.inf, np.inf]
    return ends


@njit(cache=True)
def _boost(codes, first, missing, target, start, trees, rate, leaves, penalty, least):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Nodes of every tree ``(trees, 2 leaves - 1)``, the first ``count`` of which are used.

    ``codes`` ``(n, features)`` are bins, numbered through all features; feature f's begin at
    ``first[f]``. A split sends bins up to ``cut`` to the left.
    """
    nodes = 2 * leaves - 1
    count = np.zeros(trees, np.int32)
    feature = np.full((trees, nodes), -1, np.int16)
    cut = np.zeros((trees, nodes), np.int32)
    missing_left = np.zeros((trees, nodes), np.bool_)
    left, right = np.zeros((trees, nodes), np.int32), np.zeros((trees, nodes), np.int32)
    value = np.zeros((trees, nodes))
    order = np.empty(len(target), np.int32)  # rows, those of a node side by side
    begin, end = np.zeros(nodes, np.int32), np.zeros(nodes, np.int32)
    histograms = np.empty((leaves, first[-1], 2), np.int32)
    said, sign = np.full(len(target), start), np.empty(len(target), np.int32)
    for t in range(trees):
        for row in range(len(target)):
            sign[row] = 1 if said[row] > target[row] else -1
            order[row] = row
        count[t] = _grow(
            codes, first, missing, sign, leaves, penalty, least, order, begin, end, histograms,
            feature[t], cut[t], missing_left[t], left[t], right[t],
        )  # fmt: skip
        for node in range(count[t]):
            if feature[t, node] < 0:
                rows = order[begin[node] : end[node]]
                value[t, node] = rate * np.median(target[rows] - said[rows])
                for row in rows:
                    said[row] += value[t, node]
    return count, feature, cut, missing_left, left, right, value


@njit(cache=True)
def _grow(  # type: ignore[no-untyped-def]  # pragma: no cover
    codes, first, missing, sign, leaves, penalty, least, order, begin, end, histograms,
    feature, cut, missing_left, left, right,
):  # fmt: skip
    """Grow one tree, the most promising leaf first; returns how many nodes it has.

    A histogram is counted for the smaller child only; the other has the rest of its parent's.
    """
    gain = np.zeros(len(feature))
    best = np.zeros((len(feature), 3), np.int64)  # feature, cut, whether missing ones go left
    slot = np.zeros(len(feature), np.int64)
    begin[0], end[0] = 0, len(order)
    _count(codes, sign, order, histograms[0])
    gain[0] = _best_split(histograms[0], first, missing, 0.0, penalty, least, best[0])
    spare = np.empty_like(order)
    nodes = 1
    for used in range(1, leaves):
        node = np.argmax(gain[:nodes])
        if gain[node] <= 0:
            break
        gain[node] = 0.0
        feature[node], cut[node] = best[node, 0], best[node, 1]
        rows = order[begin[node] : end[node]]
        lost = first[feature[node] + 1] - 1  # the bin of missing values
        middle = begin[node] + _part(
            codes[:, feature[node]], cut[node], best[node, 2] == 1, lost, rows, spare
        )
        left[node], right[node] = nodes, nodes + 1
        begin[nodes], end[nodes], begin[nodes + 1], end[nodes + 1] = (
            begin[node], middle, middle, end[node],
        )  # fmt: skip
        larger_left = middle - begin[node] > end[node] - middle
        missing_left[node] = best[node, 2] == 1 if missing[feature[node]] else larger_left
        larger, smaller = (nodes, nodes + 1) if larger_left else (nodes + 1, nodes)
        nodes += 2
        slot[larger], slot[smaller] = slot[node], used
        _count(codes, sign, order[begin[smaller] : end[smaller]], histograms[used])
        _less(histograms[slot[larger]], histograms[used])
        for child in (nodes - 2, nodes - 1):
            if end[child] - begin[child] >= 2 * least:
                high = sign[order[begin[child] : end[child]]].sum()
                loss = -_won(high, end[child] - begin[child], penalty)
                gain[child] = _best_split(
                    histograms[slot[child]], first, missing, loss, penalty, least, best[child]
                )
    return nodes


@njit(cache=True)
def _count(codes, sign, rows, histogram):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Rows of each bin and the sum of their signs, ``(bins, 2)``."""
    histogram[:] = 0
    for row in rows:
        for code in codes[row]:
            histogram[code, 0] += 1
            histogram[code, 1] += sign[row]


@njit(cache=True)
def _less(histogram, other):  # type: ignore[no-untyped-def]  # pragma: no cover
    for code in range(len(histogram)):  # loops: numba takes seconds to compile such of whole arrays
        histogram[code, 0] -= other[code, 0]
        histogram[code, 1] -= other[code, 1]


@njit(cache=True)
def _part(codes, cut, missing_left, lost, rows, spare):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Move rows that go left before the others, in their order; returns how many do."""
    kept = moved = 0
    for row in rows:
        if codes[row] <= cut or (missing_left and codes[row] == lost):
            rows[kept] = row
            kept += 1
        else:
            spare[moved] = row
            moved += 1
    for i in range(moved):
        rows[kept + i] = spare[i]
    return kept


@njit(cache=True)
def _won(high, rows, penalty):  # type: ignore[no-untyped-def]  # pragma: no cover
    """By how much the best value of a leaf lowers its loss, in twice the second order."""
    return high * (high / (rows + penalty + TINY))


@njit(cache=True)
def _best_split(histogram, first, missing, loss, penalty, least, best):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The largest gain over a node's ``loss``, 0 without any; ``best`` is set to its split."""
    rows = histogram[: first[1], 0].sum()
    high = histogram[: first[1], 1].sum()
    largest = 0.0
    for feature in range(len(first) - 1):
        low, lost = first[feature], first[feature + 1] - 1
        for missing_left in range(2 if missing[feature] else 1):
            some, some_high = (rows, high) if missing_left else (0, 0)
            for i in range(lost - low - missing_left):
                if missing_left:
                    code = lost - 2 - i
                    some -= histogram[code + 1, 0]
                    some_high -= histogram[code + 1, 1]
                else:
                    code = low + i
                    some += histogram[code, 0]
                    some_high += histogram[code, 1]
                rest, rest_high = rows - some, high - some_high
                if some < least or rest < least:
                    continue
                gain = loss + _won(some_high, some, penalty) + _won(rest_high, rest, penalty)
                if gain > largest:
                    largest = gain
                    best[0], best[1], best[2] = feature, code, missing_left
    return largest
