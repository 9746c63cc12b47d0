"""How long a step takes: a sum of terms of its shape, for each of its parts.

A term is a coefficient times a function of one or two features of the shape: 1, the feature,
the feature up to or beyond a knee, the experts active among so many tokens, a table, what
the ranks of an engine share, or the attention of the batch (attention.py). Tables are
interpolated linearly between their grid points, along an axis (and in the value) in the
logarithm where marked so. Beyond its edge a table keeps the edge's value, and the step counts
as extrapolated; where the first feature is 0 there is no work: 0. A pipelined model adds to
its terms what its stages take.
"""

from __future__ import annotations

import math

import numpy as np

from simulator.engine.attention import attention
from simulator.engine.build import compiled
from simulator.engine.layout import (
    Model,
    Shape,
    Term,
    address_of,
    cost_of,
    cut_of,
    feature_of,
    model_at,
    number_of,
    pipeline_at,
    shape_of,
    stage_price_of,
    term_of,
)
from simulator.engine.pipeline import last_end_of

FORWARD, HOST, GAP, HEAD, HOP, EXCHANGE = range(6)  # Term.part
# Term.kind
CONSTANT, LINEAR, UPTO, BEYOND, ACTIVE_EXPERTS, DENSE, TABLE, ATTENTION, RANGE, SHARED = range(10)
LOG_X, LOG_Y, LOG_VALUE = 1, 2, 4  # Term.logs
WHOLE, SHARED_OUT, COUNTED_ON = range(3)  # what a micro-batch gets of a feature of the step
PS_PER_S = 1e12
FEATURES = len(Shape.__annotations__)


@compiled
def predict(m: Model) -> None:
    """Times of a step of the model's shape, in picoseconds."""
    add_up(m)
    if m.stages:
        m.forward_ps += pipelined(m)
    m.steps += 1
    m.extrapolated += m.outside


@compiled
def add_up(m: Model) -> None:
    """The model's terms for its shape, part by part."""
    forward = host = gap = head = hop = exchange = 0.0
    m.outside = 0
    for k in range(m.terms):
        t = term_of(m, k)
        before, m.outside = m.outside, 0
        value = number_of(m, t.start).value * _function(m, t, feature_of(m, t.feature).value)
        t.spent += value
        t.beyond += m.outside
        m.outside |= before
        if t.part == FORWARD:
            forward += value
        elif t.part == HOST:
            host += value
        elif t.part == GAP:
            gap += value
        elif t.part == HEAD:
            head += value
        elif t.part == HOP:
            hop += value
        else:
            exchange += value
    if shape_of(m, 0).halved:
        # layer by layer one half computes while the other exchanges; one of them begins, and ends
        forward, exchange = max(forward, exchange), min(forward, exchange) / (2.0 * m.overlap)
    forward += exchange
    m.forward_ps = int(np.rint(forward * PS_PER_S))
    m.head_ps = int(np.rint(head * PS_PER_S))
    m.hop_ps = int(np.rint(hop * PS_PER_S))
    m.host_ps = int(np.rint(host * PS_PER_S))
    m.gap_ps = int(np.rint(gap * PS_PER_S))


@compiled
def pipelined(m: Model) -> int:
    """Picoseconds of the stages of a step in micro-batches, in the number that takes least."""
    most = max(1, min(m.most, shape_of(m, 0).most_rows))
    best = 0
    before = m.outside
    for parts in range(min(m.least, most), most + 1):
        p = pipeline_at(address_of(m, parts - 1).value)
        outside = before
        for b in range(parts):
            for k in range(m.stages):
                stage = stage_price_of(m, k)
                priced = model_at(stage.model)
                for f in range(FEATURES):
                    whole, how = feature_of(m, f).value, cut_of(m, f).value
                    if how == SHARED_OUT:
                        feature_of(priced, f).value = whole * (b + 1) // parts - whole * b // parts
                    else:
                        feature_of(priced, f).value = whole + b * (how == COUNTED_ON)
                add_up(priced)
                outside |= priced.outside
                line = (stage.stage * p.kinds + stage.kind) * parts + b
                cost = cost_of(p, line * p.lanes + stage.lane)
                if not stage.beside or cost.value < priced.forward_ps:
                    cost.value = priced.forward_ps
        took = last_end_of(p)
        if not best or took < best:
            best = took
            m.micro_batches = parts
            m.outside = outside
    return best


@compiled
def _function(m: Model, t: Term, x: int) -> float:
    if t.kind == LINEAR:
        return float(x)
    if t.kind == DENSE:
        return _dense(m, t, x)
    if t.kind == ATTENTION:
        return attention(m, t)
    if t.kind == SHARED:
        return _shared(m, t)
    if t.kind == TABLE:
        return _interpolate(m, t, x) if x else 0.0
    if t.kind == UPTO:
        return float(x if x < t.knee else t.knee)
    if t.kind == BEYOND:
        return float(x - t.knee if x > t.knee else 0)
    if t.kind == ACTIVE_EXPERTS:
        experts, missed = number_of(m, t.start + 1).value, number_of(m, t.start + 2).value
        return experts * (1.0 - math.pow(missed, float(x)))
    if t.kind == RANGE:
        m.outside |= x > t.knee
        return 0.0
    return 1.0


@compiled
def _dense(m: Model, t: Term, x: int) -> float:
    shape = shape_of(m, 0)
    times = 1.0
    if t.halves and shape.halved:
        x = (shape.most_tokens + 1) // 2
        times = 2.0
    elif shape.most_tokens <= t.knee:
        x = shape.most_tokens
    if x >= t.columns:
        m.outside = 1
        x = t.columns - 1
    return times * number_of(m, t.start + 1 + x).value


@compiled
def _shared(m: Model, t: Term) -> float:
    """Numbers: coefficient, tokens of all by those of the fullest, grid, a curve for each draw.

    With ``planes``: those grid points of other tokens beside those of prompts, a table a draw.
    """
    shape = shape_of(m, 0)
    tokens = float(shape.engine_tokens)
    if shape.most_tokens < t.knee:
        tokens = number_of(m, t.start + 1 + shape.most_tokens).value
    times = 1.0
    if shape.halved:
        tokens /= 2.0
        times = 2.0
    grid = t.start + 1 + t.knee
    curve = shape.draw % t.lines
    if not t.planes:
        column = _position(m, grid, t.columns, tokens)
        left = min(int(column), t.columns - 2)
        return times * _between(m, grid + t.columns * (1 + curve) + left, column - left)
    prompts = float(shape.engine_prefill) / times
    column = _position(m, grid, t.columns, prompts)
    left = min(int(column), t.columns - 2)
    beside = grid + t.columns
    line = _position(m, beside, t.planes, tokens - prompts)
    low = min(int(line), t.planes - 2)
    cell = beside + t.planes + t.columns * (t.planes * curve + low) + left
    below, above = _between(m, cell, column - left), _between(m, cell + t.columns, column - left)
    return times * (below + (line - low) * (above - below))


@compiled
def _interpolate(m: Model, t: Term, x: int) -> float:
    """Numbers of a table: coefficient, ``columns`` of x, ``lines`` of y, values line by line."""
    grid = t.start + 1
    column = _position(m, grid, t.columns, math.log(float(x)) if t.logs & LOG_X else float(x))
    left = min(int(column), t.columns - 2)
    u = column - left
    cell = grid + t.columns + t.lines + left
    if t.lines == 1:
        value = _between(m, cell, u)
    else:
        y = float(feature_of(m, t.other).value)
        if t.logs & LOG_Y:
            y = math.log(y) if y > 1.0 else 0.0
        line = _position(m, grid + t.columns, t.lines, y)
        low = min(int(line), t.lines - 2)
        cell += low * t.columns
        below, above = _between(m, cell, u), _between(m, cell + t.columns, u)
        value = below + (line - low) * (above - below)
    return math.exp(value) if t.logs & LOG_VALUE else value


@compiled
def _between(m: Model, cell: int, u: float) -> float:
    left, right = number_of(m, cell).value, number_of(m, cell + 1).value
    return left + u * (right - left)


@compiled
def _position(m: Model, start: int, count: int, x: float) -> float:
    """Place of ``x`` among the ``count`` >= 2 grid points; clamped."""
    first, last = number_of(m, start).value, number_of(m, start + count - 1).value
    if not first <= x <= last:
        m.outside = 1
    if x <= first:
        return 0.0
    if x >= last:
        return float(count - 1)
    low, high = start, start + count - 1
    while high - low > 1:
        middle = (low + high) // 2
        if number_of(m, middle).value <= x:
            low = middle
        else:
            high = middle
    left, right = number_of(m, low).value, number_of(m, high).value
    return low - start + (x - left) / (right - left)
