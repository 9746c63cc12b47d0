"""What a run looked like over time: requests in flight, batch size, KV use.

Time runs from the first compared arrival, so two bundles lie on one axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from traces.metrics import Floats, column
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


def _area_after(events: Floats, edges: Floats) -> Floats:
    """Integral from 0 to each edge of the number of events so far."""
    events = np.sort(events)
    count = np.searchsorted(events, edges, side="right")
    area: Floats = count * edges - np.concatenate([[0.0], np.cumsum(events)])[count]
    return area


def over_steps(seen: View, name: str, points: int = POINTS) -> Series | None:
    """A metric of steps averaged over the steps that start in each interval.

    ``name`` is one of ``View.of_steps``; NaN where no step starts. None where the bundle does
    not record it.
    """
    start, values = seen.of_steps.get(name, (np.empty(0), np.empty(0)))
    if not len(values):
        return None
    edges = _edges(seen, points)
    bins = np.searchsorted(edges, start - seen.first_s, side="right") - 1
    bins = np.clip(bins, 0, points - 1)
    count = np.bincount(bins, minlength=points)
    total = np.bincount(bins, weights=values, minlength=points)
    return Series(_middles(edges), np.where(count, total / np.maximum(count, 1), np.nan))


def _edges(seen: View, points: int) -> Floats:
    return np.linspace(0.0, max(seen.last_s - seen.first_s, 1e-9), points + 1)


def _middles(edges: Floats) -> Floats:
    middles: Floats = (edges[1:] + edges[:-1]) / 2
    return middles
