"""An operator of one key, fitted: roofline, trees on its log-residual, corrections by the grid.

log seconds = log roofline(work) + residual
residual    = the measured one at a measured point, else
              corrections of all axes with a neighbour, weighted by 1 / error^2, else
              the trees' own
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.base import Device, Family, Shape
from simulator.operators.boosting import Boosting, fit_trees
from simulator.operators.correction import (
    Asked,
    Correction,
    Known,
    Sample,
    Turns,
    fit_correction,
    octave_position,
)
from simulator.operators.lines import group_numbers, neighbours
from simulator.operators.roofline import Roofline, fit_roofline
from simulator.operators.trees import Trees
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BASE = Boosting(trees=300, rate=0.1, leaves=31)
LEAST_TREES = 100  # measured points below which trees have nothing to learn from
SLACK = 1.01
BOOST = 1.10  # clocks run up to a tenth above the nominal of the sheet
DERIVED = ("aligned", "windowed")  # coordinates that follow from others


@dataclass(slots=True)
class Prediction:
    """Seconds of rows ``(n,)``, and which of them lie outside what was fitted."""

    seconds: Floats
    extrapolated: Bools


@dataclass(slots=True)
class FittedOperator:
    """A fitted family for one key; ``lows`` and ``highs`` are the ranges it was fitted on.

    ``names`` are the values of coordinates that are names or must have been measured.
    ``kinds`` are those of the roofline's work, ``features`` the trees'; ``place``,
    ``residual``, ``seconds`` and ``base`` (what the trees say) are of the measured points, each
    once.
    """

    family: str
    key: dict[str, str]
    kinds: tuple[str, ...]
    features: tuple[str, ...]
    roofline: Roofline
    trees: Trees | None
    corrections: list[Correction]
    place: dict[str, npt.NDArray[np.generic]]
    residual: Floats
    seconds: Floats
    base: Floats
    lows: dict[str, float]
    highs: dict[str, float]
    names: dict[str, list[str]]
    rows: int

    def knows(self, shape: Shape) -> bool:
        """Whether the family still says of a shape what it said when this was fitted."""
        return (self.kinds, self.features) == (tuple(shape.work), tuple(shape.features))

    def predict(self, shape: Shape, device: Device) -> Prediction:
        """Predict rows; a time never beats the device's peak FLOP/s, boost allowed for.

        Raises TraceError if the family has other features by now.
        """
        if not self.knows(shape):
            raise TraceError(f"{self.family}: fitted by another version; frontier operators fit")
        roofline = self.roofline.log_seconds(stacked(shape.work))
        seconds = np.exp(roofline + self._residual(shape, roofline))
        if "flops" in shape.work:
            seconds = np.maximum(seconds, shape.work["flops"] / (BOOST * device.peak_flops))
        return Prediction(seconds, self.outside(shape))

    def outside(self, shape: Shape) -> Bools:
        """Rows with a number outside the fitted range, or a name that was not measured."""
        found = np.zeros(len(next(iter(shape.work.values()))), bool)
        values = ranged(shape)
        for name, low in self.lows.items():
            found |= (values[name] < low / SLACK) | (values[name] > self.highs[name] * SLACK)
        for name, known in self.names.items():
            found |= ~pd.Series(shape.place[name]).astype(str).isin(known).to_numpy()
        return found

    def _residual(self, shape: Shape, roofline: Floats) -> Floats:
        features = stacked(shape.features)
        base = self.trees.predict(features) if self.trees is not None else np.zeros(len(features))
        known, asked = len(self.residual), len(base)
        place = {n: _joined(self.place[n], shape.place[n]) for n in self.place}
        is_known = np.arange(known + asked) < known
        grid = Known(np.log(self.seconds), self.residual, self.base)
        points = Asked(base, roofline, features)
        total, weight = np.zeros(asked), np.zeros(asked)
        for correction in self.corrections:
            axis = correction.axis
            line = group_numbers(place, axis.fixed)
            near = neighbours(octave_position(place, axis), line, is_known).of(slice(known, None))
            found, error = correction.residual(points, near, grid)
            with np.errstate(divide="ignore"):
                trust = np.where(np.isinf(error), 0.0, 1.0 / np.maximum(error, 1e-4) ** 2)
            total += trust * found
            weight += trust
        corrected = total / np.where(weight > 0, weight, 1)
        residual = np.where(weight > 0, corrected, base)
        point = group_numbers(place, list(self.place))
        measured = pd.Series(self.residual, index=point[:known])
        exact = np.asarray(measured.reindex(point[known:]), np.float64)
        answer: Floats = np.where(np.isnan(exact), residual, exact)
        return answer


def _joined(
    known: npt.NDArray[np.generic], asked: npt.NDArray[np.generic]
) -> npt.NDArray[np.generic]:
    return np.concatenate([known, np.asarray(asked, known.dtype)])


def stacked(columns: Mapping[str, Floats]) -> Floats:
    """Columns side by side, ``(n, columns)``."""
    return np.stack(list(columns.values()), axis=1)


def ranged(shape: Shape) -> dict[str, Floats]:
    """The numbers of a shape whose range is kept: coordinates, and the work in all."""
    numbers = {
        n: np.asarray(v, float)
        for n, v in shape.place.items()
        if np.asarray(v).dtype != object and n not in DERIVED
    }
    return {**numbers, **{n: shape.work[n] for n in ("flops", "bytes") if n in shape.work}}


def fit_operator(
    name: str, family: Family, key: dict[str, str], shape: Shape, seconds: Floats
) -> FittedOperator:
    """Fit rows of one key; repeats of a point count once, by their mean logarithm."""
    roofline = fit_roofline(stacked(shape.work), seconds)
    residual = np.log(seconds) - roofline.log_seconds(stacked(shape.work))
    point = group_numbers(shape.place, list(shape.place))
    counts = np.bincount(point)
    first = np.unique(point, return_index=True)[1]
    sample = Sample(
        stacked(shape.features)[first],
        np.bincount(point, np.log(seconds)) / counts,
        np.bincount(point, residual) / counts,
        {n: np.asarray(v)[first] for n, v in shape.place.items()},
    )
    how = BASE if len(first) >= LEAST_TREES else None
    trees = fit_trees(sample.features, sample.residual, how) if how else None
    turns: Turns = {}
    found = [fit_correction(sample, axis, how, turns) for axis in family.axes]
    corrections = [correction for correction in found if correction is not None]
    numbers = ranged(shape)
    named = [n for n, v in sample.place.items() if v.dtype == object or n in family.labels]
    return FittedOperator(
        name, key, tuple(shape.work), tuple(shape.features), roofline, trees, corrections,
        dict(sample.place), sample.residual, np.exp(sample.log_s),
        trees.predict(sample.features) if trees is not None else np.zeros(len(first)),
        {n: float(np.nanmin(v)) for n, v in numbers.items() if n not in named},
        {n: float(np.nanmax(v)) for n, v in numbers.items() if n not in named},
        {n: sorted({str(v) for v in sample.place[n]}) for n in named},
        len(seconds),
    )  # fmt: skip
