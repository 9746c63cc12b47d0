"""What a run looked like over time: requests in flight, throughput, batch size, KV use.

Time runs from the first compared arrival, so two bundles lie on one axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.metrics import Floats, column
from validation.compared import family_of
from validation.samples import View

POINTS = 160


@dataclass(frozen=True, slots=True)
class Series:
    """A value over time: ``time_s`` seconds from the first arrival, both ``(n_points,)``."""

    time_s: Floats
    value: Floats


def in_flight(seen: View, points: int = POINTS) -> Series:
    """Requests arrived and not yet finished, averaged over each of ``points`` equal intervals."""
    requests = seen.bundle.requests
    edges = _edges(seen, points)
    arrived = _area_after(column(requests, "arrival_s") - seen.first_s, edges)
    finished = _area_after(column(requests, "finished_s") - seen.first_s, edges)
    return Series(_middles(edges), np.diff(arrived - finished) / np.diff(edges))


def throughput(seen: View, points: int = POINTS) -> Series:
    """Output tokens a second in each of ``points`` equal intervals.

    A request's first token comes when it came, the others evenly until it finished.
    """
    requests, edges = seen.bundle.requests, _edges(seen, points)
    first = column(requests, "first_token_s") - seen.first_s
    last = column(requests, "finished_s") - seen.first_s
    tokens = column(requests, "output_tokens")
    known = np.isfinite(first) & np.isfinite(last) & (tokens > 0)
    first, last, more = first[known], last[known], tokens[known] - 1
    lasting = last > first
    at_once = np.where(lasting, 1.0, 1.0 + more)
    rate = np.where(lasting, more / np.where(lasting, last - first, 1.0), 0.0)
    given = _count_before(first, edges, at_once)
    given += _area_after(first, edges, rate) - _area_after(last, edges, rate)
    return Series(_middles(edges), np.diff(given) / np.diff(edges))


def _count_before(events: Floats, edges: Floats, weights: Floats) -> Floats:
    """Sum of the weights of the events so far at each edge; those at 0 come after it."""
    order = np.argsort(events)
    count = np.searchsorted(events[order], edges, side="right")
    count[0] = 0
    so_far: Floats = np.concatenate([[0.0], np.cumsum(weights[order])])[count]
    return so_far


def _area_after(events: Floats, edges: Floats, weights: Floats | None = None) -> Floats:
    """Integral from 0 to each edge of the weight (1 unless given) of the events so far."""
    order = np.argsort(events)
    events = events[order]
    weights = np.ones(len(events)) if weights is None else weights[order]
    count = np.searchsorted(events, edges, side="right")
    so_far, moment = (
        np.concatenate([[0.0], np.cumsum(v)])[count] for v in (weights, weights * events)
    )
    area: Floats = so_far * edges - moment
    return area


def over_steps(seen: View, name: str, points: int = POINTS) -> Series | None:
    """A metric of steps averaged over the steps that start in each interval.

    ``name`` is one of ``View.of_steps``; NaN where no step starts. KV use stays what the last
    step left: an engine whose memory is full of what others have not taken runs none. None
    where the bundle does not record it.
    """
    start, values = seen.of_steps.get(name, (np.empty(0), np.empty(0)))
    if not len(values):
        return None
    edges = _edges(seen, points)
    bins = np.searchsorted(edges, start - seen.first_s, side="right") - 1
    bins = np.clip(bins, 0, points - 1)
    count = np.bincount(bins, minlength=points)
    total = np.bincount(bins, weights=values, minlength=points)
    mean = np.where(count, total / np.maximum(count, 1), np.nan)
    if family_of(name) == "kv_use":
        last = np.maximum.accumulate(np.where(count, np.arange(points), -1))
        mean = np.where(last >= 0, mean[last], np.nan)
    return Series(_middles(edges), mean)


def _edges(seen: View, points: int) -> Floats:
    return np.linspace(0.0, max(seen.last_s - seen.first_s, 1e-9), points + 1)


def _middles(edges: Floats) -> Floats:
    middles: Floats = (edges[1:] + edges[:-1]) / 2
    return middles
