"""One layer's attention from a table over four numbers (``step_time/functions.py: Attention``).

The batch counts as one chunk of ``query`` tokens after ``context`` ones, and ``decodes`` rows
of one token after ``mean`` ones. Multilinear between the measured points, held at the edge
beyond them; between nothing (0) and the smallest that was measured lies only the smallest.
Decodes of unequal contexts cost more by their coefficient of variation times a slope.

Numbers of the term: coefficient, four axes, seconds (last axis innermost), slopes without
and with a chunk by decodes and mean, and the largest variation that was measured.
"""

from __future__ import annotations

import math

from simulator.engine.build import compiled
from simulator.engine.layout import Model, Term, number_of, shape_of


@compiled
def attention(m: Model, t: Term) -> float:
    """Seconds of the attention of the model's shape; notes whether it lies outside the table."""
    shape = shape_of(m, 0)
    query, context, decodes = float(shape.prefill_tokens), 0.0, float(shape.decodes)
    if query > 0.0:
        alone = query * (query + 1.0) / 2.0
        if shape.prefill_pairs > alone:
            context = (shape.prefill_pairs - alone) / query
        else:  # several prefills: one chunk with their query-key pairs
            query = math.sqrt(2.0 * shape.prefill_pairs)
    mean = shape.decode_context / decodes if decodes > 0.0 else 0.0
    at = t.start + 1
    q = _place(m, at, t.columns, query)
    at += t.columns
    c = _place(m, at, t.lines, context)
    at += t.lines
    n = _place(m, at, t.planes, decodes)
    at += t.planes
    k = _place(m, at, t.cubes, mean)
    at += t.cubes
    found = 0.0
    for i in range(2):
        for j in range(2):
            chunk = _weight(q, t.columns, i) * _weight(c, t.lines, j)
            if chunk > 0.0:
                line = (_low(q, t.columns) + i) * t.lines + _low(c, t.lines) + j
                plane = at + line * t.planes * t.cubes
                found += chunk * _between(m, plane, t, n, k)
    if decodes > 1.0 and mean > 0.0:
        slopes = at + t.columns * t.lines * t.planes * t.cubes
        most = number_of(m, slopes + 2 * t.planes * t.cubes).value
        varied = math.sqrt(max(0.0, shape.decode_context_sq / decodes / (mean * mean) - 1.0))
        if varied > most:
            varied = most
            m.outside = 1
        if query > 0.0:
            slopes += t.planes * t.cubes
        found *= 1.0 + varied * _between(m, slopes, t, n, k)
    return found


@compiled
def _place(m: Model, start: int, count: int, value: float) -> float:
    """Place of a value among the points of an axis, of which the first is 0.

    One between that and the next, the least measured, counts as the next and as outside.
    """
    last = count - 1
    if value > number_of(m, start + last).value:
        m.outside = 1
        return float(last)
    if value <= 0.0:
        return 0.0
    if value <= number_of(m, start + 1).value:
        m.outside |= value < number_of(m, start + 1).value
        return 1.0
    low, high = 1, last
    while high - low > 1:
        middle = (low + high) // 2
        if number_of(m, start + middle).value <= value:
            low = middle
        else:
            high = middle
    left, right = number_of(m, start + low).value, number_of(m, start + high).value
    return low + (value - left) / (right - left)


@compiled
def _low(place: float, count: int) -> int:
    """The point below a place that has one above it, if any has."""
    return max(0, min(int(place), count - 2))


@compiled
def _weight(place: float, count: int, above: int) -> float:
    """How much the point below, or above, a place counts."""
    part = place - _low(place, count)
    return part if above else 1.0 - part


@compiled
def _between(m: Model, start: int, t: Term, n: float, k: float) -> float:
    """Of a table by decodes and mean context, the number at these places."""
    found = 0.0
    for i in range(2):
        for j in range(2):
            weight = _weight(n, t.planes, i) * _weight(k, t.cubes, j)
            if weight > 0.0:
                cell = (_low(n, t.planes) + i) * t.cubes + _low(k, t.cubes) + j
                found += weight * number_of(m, start + cell).value
    return found
