"""A roofline with fitted ceilings: time as a smooth maximum over kinds of work.

    t = c_0 + ( sum_i (c_i w_i)^p )^(1/p)

w_i is a kind of work of a shape (FLOPs, bytes, waves of thread blocks, one launch), 1 / c_i the
rate that the device reaches at it, and p says how well the kinds overlap: 1 adds them up, as
when nothing overlaps, large p takes the largest, as in the roofline of Williams, Waterman and
Patterson (CACM 52(4), 2009). All are fitted in the logarithm of time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ROWS = 6000  # a dozen numbers need no more
NO_WORK = 1e-9
OVERLAP = (0.7, 8.0)
ROBUST = 0.1  # residuals beyond 10 % count linearly


@dataclass(frozen=True, slots=True)
class Roofline:
    """``cost_s`` is seconds per unit of each kind of work, ``(kinds,)``."""

    floor_s: float
    cost_s: Floats
    overlap: float

    def log_seconds(self, work: Floats) -> Floats:
        """Logarithm of seconds of shapes with ``work`` ``(n, kinds)``.

        >>> roof = Roofline(0.0, np.array([1e-12, 1e-9]), 1.0)
        >>> np.exp(roof.log_seconds(np.array([[2e6, 3e3]]))).round(9)
        array([5.e-06])
        """
        with np.errstate(divide="ignore"):
            return _log_seconds(np.log(self.floor_s), np.log(self.cost_s), self.overlap, _log(work))


def _log(work: Floats) -> Floats:
    return np.log(np.maximum(work, NO_WORK))


def _log_seconds(floor: float, cost: Floats, overlap: float, log_work: Floats) -> Floats:
    parts = overlap * (log_work + cost)
    most = parts.max(axis=1)
    total = most + np.log(np.exp(parts - most[:, None]).sum(axis=1))
    found: Floats = np.logaddexp(floor, total / overlap)
    return found


def fit_roofline(work: Floats, seconds: Floats) -> Roofline:
    """Fit to ``work`` ``(n, kinds)`` and ``seconds`` ``(n,)``; robust to outliers.

    Starts with every kind as costly as the rows allow (the 5th percentile of seconds per
    unit), from where the fit lets go of those that do not bind.
    """
    from scipy.optimize import least_squares

    some = np.random.default_rng(0).permutation(len(seconds))[:ROWS]
    log_work, log_t = _log(work[some]), np.log(seconds[some])
    start = np.quantile(log_t[:, None] - log_work, 0.05, axis=0)
    first = np.r_[log_t.min() - 1.0, start, np.log(2.0)]
    low = np.r_[-40.0, start - 40.0, np.log(OVERLAP[0])]
    high = np.r_[log_t.min() + 0.2, start + 10.0, np.log(OVERLAP[1])]

    def miss(x: Floats) -> Floats:
        return _log_seconds(x[0], x[1:-1], np.exp(x[-1]), log_work) - log_t

    fit = least_squares(
        miss, first, bounds=(low, high), loss="soft_l1", f_scale=ROBUST, x_scale="jac",
        max_nfev=150,
    )  # fmt: skip
    return Roofline(float(np.exp(fit.x[0])), np.exp(fit.x[1:-1]), float(np.exp(fit.x[-1])))
