"""What the grid says about a point between its measurements, learned along one axis.

The trees know shapes; neighbours on the point's grid line know its own kernel. How far to trust
them is learned by hiding lines: values of the axis are hidden in turn (every third, then the
largest quarter), the trees are fitted to the rest, and a second, smaller model learns what
the hidden points' residuals were from what their visible neighbours show. So a point is judged
as one of a line that was never measured, and never by its own measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.operators.boosting import Boosting, fit_trees
from simulator.operators.lines import Axis, Neighbours, Place, group_numbers, neighbours
from simulator.operators.trees import Trees

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

HIDDEN_TURNS = 3
LEAST_VALUES = 3
LEAST_LEARNED = 200  # hidden points below which only plain choices are compared
MOST_ROWS = 20_000  # rows of one of the fits behind a correction
SHOWN = 400  # hidden points kept to show what errors to expect
SMALL = Boosting(trees=120, rate=0.08, leaves=15, penalty=5.0)
BASE, INTERPOLATED, BETWEEN, LEARNED = "base", "interpolated", "between", "learned"
STRAIGHT = "straight"


@dataclass(slots=True)
class Sample:
    """Unique measured points of one key: features, log seconds, log-residual, place."""

    features: Floats
    log_s: Floats
    residual: Floats
    place: Place


@dataclass(frozen=True, slots=True)
class Known:
    """Of grid points ``(n,)``: log seconds, log-residual, and what the trees say of it."""

    log_s: Floats
    residual: Floats
    base: Floats


@dataclass(frozen=True, slots=True)
class Asked:
    """Of points to be corrected ``(n,)``: the trees' residual, log roofline, features."""

    base: Floats
    roofline: Floats
    features: Floats


@dataclass(slots=True)
class Correction:
    """How to correct the trees along one axis.

    ``choice`` and ``error`` (mean absolute log error on hidden lines) are given for points with
    a neighbour on one side and on both; ``trees`` is the learned model, if any was better.
    ``hidden`` are points that were hidden and the choice's log error there.
    """

    axis: Axis
    choice: dict[str, str]
    error: dict[str, float]
    hidden: npt.NDArray[np.int64]
    hidden_error: Floats
    trees: Trees | None = None

    def residual(self, asked: Asked, near: Neighbours, known: Known) -> tuple[Floats, Floats]:
        """Corrected log-residual of points and the error to expect, inf without neighbours.

        ``near`` are their neighbours among the ``known``.
        """
        base = asked.base
        options = {BASE: base, **plain_choices(self.axis, asked, near, known)}
        if self.trees is not None:
            seen = beside(base, near, known)
            options[LEARNED] = base + self.trees.predict(np.c_[asked.features, seen])
        options = with_means(options)
        found, error = base.copy(), np.full(len(base), np.inf)
        for side, mask in (("one", near.any & ~near.both), ("both", near.both)):
            found[mask] = options[self.choice[side]][mask]
            error[mask] = self.error[side]
        return found, error


def plain_choices(axis: Axis, asked: Asked, near: Neighbours, known: Known) -> dict[str, Floats]:
    """Residuals without a learned correction.

    Interpolated as it is, or what the trees left of it, or that of the time on a straight line.
    """
    left_over = near.values(known.residual - known.base)[2]
    between = near.values(known.residual)[2]
    found = {INTERPOLATED: between, BETWEEN: asked.base + left_over}
    if axis.straight:
        straight = near.straight(known.log_s) - asked.roofline
        found[STRAIGHT] = np.where(near.both, straight, between)
    return found


def with_means(options: dict[str, Floats]) -> dict[str, Floats]:
    """The options and the means of any two: errors of different origin cancel in part."""
    pairs = combinations(options, 2)
    return {**options, **{f"{a}+{b}": (options[a] + options[b]) / 2 for a, b in pairs}}


def beside(base: Floats, near: Neighbours, known: Known) -> Floats:
    """What neighbours show of each point, ``(n, 8)``, NaN where there are none.

    Measured residuals of both and between them, relative to the trees' at the point; what the
    trees left at both and between them; the gaps in octaves.
    """
    below, above, between = near.values(known.residual)
    left = near.values(known.residual - known.base)
    return np.stack(
        [below - base, above - base, between - base, *left, near.below_gap, near.above_gap], axis=1
    )


@dataclass(slots=True)
class _Hidden:
    """Points while hidden: what could be seen, and what was true."""

    seen: list[Floats]
    features: list[Floats]
    options: dict[str, list[Floats]]
    both: list[Bools]
    truth: list[Floats]
    point: list[npt.NDArray[np.int64]]
    group: list[npt.NDArray[np.int64]]


Turns = dict[tuple[str, int], Trees]
"""Trees by the coordinate whose values were hidden from them, and in which turn."""


def fit_correction(
    sample: Sample, axis: Axis, how: Boosting | None, turns: Turns
) -> Correction | None:
    """Learn a correction along ``axis``; None where the grid has no lines along it.

    ``how`` are the trees whose residuals are corrected; None stands for no trees. ``turns`` keeps
    them for further axes along the same coordinate of the sample.
    """
    values, rank = np.unique(np.asarray(sample.place[axis.along], float), return_inverse=True)
    if len(values) < LEAST_VALUES:
        return None
    line = group_numbers(sample.place, axis.fixed)
    position = octave_position(sample.place, axis)
    plain = (BASE, INTERPOLATED, BETWEEN, *([STRAIGHT] if axis.straight else []))
    hidden = _Hidden([], [], {name: [] for name in plain}, [], [], [], [])
    largest = rank >= len(values) - max(1, len(values) // 4)
    for turn, hide in enumerate(
        [*(rank % HIDDEN_TURNS == i for i in range(HIDDEN_TURNS)), largest]
    ):
        _hide(hidden, sample, axis, position, line, hide, how, turn, turns)
    if not hidden.truth:
        return None
    return _choose(axis, hidden)


def octave_position(place: Place, axis: Axis) -> Floats:
    """Position along an axis, in octaves; 0 lies below 1."""
    found: Floats = np.log2(np.maximum(np.asarray(place[axis.along], float), 0.25))
    return found


def _hide(
    hidden: _Hidden, sample: Sample, axis: Axis, position: Floats, line: npt.NDArray[np.int64],
    hide: Bools, how: Boosting | None, turn: int, turns: Turns,
) -> None:  # fmt: skip
    near = neighbours(position, line, ~hide)
    asked = np.flatnonzero(hide & near.any)
    if not len(asked):
        return
    asked = _some(asked, MOST_ROWS // 2)
    base = np.zeros(len(hide))
    if how is not None:
        this = (axis.along, turn)
        if this not in turns:
            shown = _some(np.flatnonzero(~hide), MOST_ROWS)
            turns[this] = fit_trees(sample.features[shown], sample.residual[shown], how)
        wanted = np.unique(np.concatenate([asked, near.below[asked], near.above[asked]]))
        base[wanted] = turns[this].predict(sample.features[wanted])
    part = near.of(asked)
    known = Known(sample.log_s, sample.residual, base)
    roofline = (sample.log_s - sample.residual)[asked]
    own = Asked(base[asked], roofline, sample.features[asked])
    hidden.options[BASE].append(own.base)
    for name, found in plain_choices(axis, own, part, known).items():
        hidden.options[name].append(found)
    hidden.seen.append(beside(own.base, part, known))
    hidden.features.append(own.features)
    hidden.both.append(part.both)
    hidden.truth.append(sample.residual[asked])
    hidden.point.append(asked)
    hidden.group.append(np.full(len(asked), turn))


def _some(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def _choose(axis: Axis, hidden: _Hidden) -> Correction:
    """The choice with the least error on hidden points, for one and for two neighbours."""
    truth, both = np.concatenate(hidden.truth), np.concatenate(hidden.both)
    options = {name: np.concatenate(found) for name, found in hidden.options.items()}
    rows = np.c_[np.concatenate(hidden.features), np.concatenate(hidden.seen)]
    miss = truth - options[BASE]
    if len(truth) >= LEAST_LEARNED:
        group = np.concatenate(hidden.group)
        crossed = np.zeros(len(truth))
        for fold in (0, 1):  # the learned choice is judged on turns that it did not see
            rest = group % 2 == fold
            if rest.any() and not rest.all():
                crossed[rest] = fit_trees(rows[~rest], miss[~rest], SMALL).predict(rows[rest])
        options[LEARNED] = options[BASE] + crossed
    options = with_means(options)
    choice: dict[str, str] = {}
    error: dict[str, float] = {}
    chosen = np.zeros(len(truth))
    for side, mask in (("one", ~both), ("both", both)):
        of = mask if mask.any() else np.ones(len(truth), bool)
        errors = {name: float(np.abs(f - truth)[of].mean()) for name, f in options.items()}
        choice[side] = min(errors, key=lambda name: errors[name])
        error[side] = errors[choice[side]]
        chosen[mask] = options[choice[side]][mask]
    learned = any(LEARNED in name for name in choice.values())
    some = _some(np.arange(len(truth)), SHOWN)
    return Correction(
        axis, choice, error, np.concatenate(hidden.point)[some], (chosen - truth)[some],
        fit_trees(rows, miss, SMALL) if learned else None,
    )  # fmt: skip


def to_data(correction: Correction) -> tuple[dict[str, Any], dict[str, Any]]:
    """A correction as plain values and as arrays, to be written."""
    plain = {"axis": correction.axis.name, "choice": correction.choice, "error": correction.error}
    arrays = {"hidden": correction.hidden, "hidden_error": correction.hidden_error}
    if correction.trees is not None:
        arrays.update({f"trees/{n}": v for n, v in correction.trees.arrays().items()})
    return plain, arrays


def of_data(axis: Axis, plain: dict[str, Any], arrays: dict[str, Any]) -> Correction:
    """Inverse of ``to_data``."""
    trees = {n.removeprefix("trees/"): v for n, v in arrays.items() if n.startswith("trees/")}
    return Correction(
        axis, plain["choice"], plain["error"], arrays["hidden"], arrays["hidden_error"],
        Trees.of(trees) if trees else None,
    )  # fmt: skip
