"""The points of a sweep: every combination of its axes, a list, or a random sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import ValidationError

from replay.whatif.base import Settings
from replay.whatif.spec import Grid, Range, Sweep
from traces.errors import ConfigError

Axis = list[Any] | Range


def axes_of(grid: Grid, where: str) -> dict[str, Axis]:
    """Each key's values: a list, a range, or the one value given. Raises ConfigError."""
    axes: dict[str, Axis] = {}
    for key, given in grid.items():
        if isinstance(given, dict) and {"from", "to"} <= given.keys():
            try:
                axes[key] = Range.model_validate(given)
            except ValidationError as error:
                what = error.errors()[0]["msg"]
                raise ConfigError(f"{where}: axes.{key}: {what}") from None
        elif isinstance(given, list):
            if not given:
                raise ConfigError(f"{where}: axes.{key}: no value")
            axes[key] = given
        else:
            axes[key] = [given]
    return axes


def points_of(sweep: Sweep, where: str) -> list[Settings]:
    """All points but those of a search, in a fixed order, none of them twice.

    Raises ConfigError: a range in a grid, a sample larger than its grid.
    """
    grids = [axes_of(grid, where) for grid in sweep.grids if grid]
    found: list[Settings] = [dict(point) for point in sweep.points]
    if sweep.sample is not None:
        found += _sample(grids, sweep.sample.points, sweep.sample.seed, where)
    elif sweep.search is None:
        for axes in grids:
            found += _grid(axes, where)
    return list({_identity(point): point for point in found}.values())


def _identity(point: Settings) -> str:
    return repr(sorted(point.items()))


def _grid(axes: dict[str, Axis], where: str) -> Iterator[Settings]:
    for key, axis in axes.items():
        if isinstance(axis, Range):
            raise ConfigError(f"{where}: axes.{key}: a range needs a sample or a search")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _sample(grids: list[dict[str, Axis]], count: int, seed: int, where: str) -> Iterator[Settings]:
    """Different points, each from a grid drawn in proportion to its size."""
    rng = np.random.default_rng(seed)
    finite = all(isinstance(axis, list) for axes in grids for axis in axes.values())
    if finite:
        every = [point for axes in grids for point in _grid(axes, where)]
        if count > len(every):
            raise ConfigError(f"{where}: sample.points: {count} of a grid of {len(every)} points")
        for i in sorted(rng.choice(len(every), count, replace=False)):
            yield every[i]
        return
    for _ in range(count):
        axes = grids[int(rng.integers(len(grids)))]
        yield {key: _draw(rng, axis) for key, axis in axes.items()}


def _draw(rng: np.random.Generator, axis: Axis) -> Any:
    if not isinstance(axis, Range):
        return axis[int(rng.integers(len(axis)))]
    low, high = float(axis.low), float(axis.high)
    if axis.whole:
        high += 1
    share = rng.random()
    value = low * (high / low) ** share if axis.log else low + (high - low) * share
    return min(int(value), int(axis.high)) if axis.whole else value
