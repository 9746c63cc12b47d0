"""Fits of times: non-negative sums of terms, and a delay known by bounds."""

from __future__ import annotations

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


def fit_part(matrix: Floats, seconds: Floats) -> Floats:
    """Non-negative coefficients with weights 1 / prediction, ``(n_terms,)``, seconds a unit."""
    from scipy.optimize import nnls

    scale = np.maximum(matrix.max(axis=0), 1e-12)
    predicted = np.full(len(seconds), max(float(seconds.mean()), 1e-9))
    for _ in range(ROUNDS):
        root = np.sqrt(weights_of(predicted, seconds))
        solution, _ = nnls(matrix / scale * root[:, None], seconds * root, maxiter=10_000)
        predicted = (matrix / scale) @ solution
    coefficients: Floats = solution / scale
    return coefficients


def weights_of(predicted: Floats, seconds: Floats) -> Floats:
    """Noise grows with the step: 1 / prediction, bounded for the shortest."""
    weights: Floats = 1.0 / np.maximum(predicted, 1e-3 * seconds.mean() + 1e-9)
    return weights
