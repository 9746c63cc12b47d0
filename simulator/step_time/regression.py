"""Fits of times: non-negative sums of terms, and a delay known by bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
ROUNDS = 8


def frontend_delay(bounds: Floats) -> float | None:
    """The delay with the smallest summed distance to all ``(least, largest)`` bounds, seconds.

    The median, if bounds were exact; None without any.

    >>> frontend_delay(np.array([[1.0, 1.0], [0.5, 9.0], [0.0, 1.5], [0.7, 3.0]]))
    1.0
    """
    if not len(bounds):
        return None
    least, largest = np.sort(bounds[:, 0]), np.sort(bounds[:, 1])
    points = np.unique(bounds)
    beyond = np.searchsorted(largest, points, side="right")
    below = len(bounds) - np.searchsorted(least, points, side="right")
    return float(points[int(np.argmax(beyond >= below))])


@dataclass(frozen=True, slots=True)
class Proportion:
    """A belief: a coefficient is ``ratio`` times the sum of others, give or take as much again.

    ``one`` is its column, ``others (n_terms,)`` is 1 for those summed, else 0.
    """

    one: int
    others: Floats
    ratio: float

    def row(self, coefficients: Floats, noise: float) -> Floats:
        """The belief as a row of least squares beside steps of that noise, ``(n_terms,)``."""
        found: Floats = -self.ratio * self.others
        found[self.one] += 1.0
        expected = self.ratio * float(np.dot(self.others, coefficients))
        spread = max(expected, 1e-3 * float(coefficients[self.one]))
        return found * (noise / spread if spread > 0 else 0.0)


def fit_part(matrix: Floats, seconds: Floats, belief: Proportion | None = None) -> Floats:
    """Non-negative coefficients with weights 1 / prediction, ``(n_terms,)``, seconds a unit.

    A belief counts as much as one more observation of its coefficient: where the steps tell,
    they overrule it.
    """
    from scipy.optimize import nnls

    scale = np.maximum(matrix.max(axis=0), 1e-12)
    scaled = matrix / scale
    predicted = np.full(len(seconds), max(float(seconds.mean()), 1e-9))
    believed = np.zeros((1, matrix.shape[1]))
    for _ in range(ROUNDS):
        root = np.sqrt(weights_of(predicted, seconds))
        rows = np.vstack([scaled * root[:, None], believed / scale])
        solution, _ = nnls(rows, np.append(seconds * root, 0.0), maxiter=10_000)
        predicted = scaled @ solution
        if belief is not None:
            noise = noise_of(matrix, seconds, solution / scale)
            believed = belief.row(solution / scale, noise)[None]
    coefficients: Floats = solution / scale
    return coefficients


def noise_of(matrix: Floats, seconds: Floats, coefficients: Floats) -> float:
    """Standard deviation of the weighted residuals."""
    predicted = matrix @ coefficients
    squares = float(np.sum(weights_of(predicted, seconds) * (predicted - seconds) ** 2))
    used = int(np.count_nonzero(coefficients))
    return float(np.sqrt(squares / max(1, len(seconds) - used)))


def weights_of(predicted: Floats, seconds: Floats) -> Floats:
    """Noise grows with the step: 1 / prediction, bounded for the shortest."""
    weights: Floats = 1.0 / np.maximum(predicted, 1e-3 * seconds.mean() + 1e-9)
    return weights
