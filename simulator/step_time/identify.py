"""Which coefficients of a fit its steps do not tell: another mix of terms fits them as well."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
TRADES = -0.5  # correlation of two coefficients over the draws from which on they are one


def undetermined(names: Sequence[str], draws: Floats) -> list[str]:
    """A line for each coefficient whose 95 % interval reaches zero.

    ``draws`` are refits to resampled data, ``(draws, names)``, seconds a unit. The line names
    the coefficient that falls most where this one rises, if one does.

    >>> rng = np.random.default_rng(0)
    >>> share = rng.uniform(-0.2, 1.0, 200).clip(0, 1)
    >>> undetermined(["a", "b"], np.stack([share, 2 - share], axis=1) * 1e-6)
    ['a may be 0 to 1.0 us, b in its place: these steps do not tell']
    """
    lines = []
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        together = np.atleast_2d(np.nan_to_num(np.corrcoef(draws, rowvar=False)))
    for i in np.flatnonzero((low <= 0) & (high > 0)).tolist():
        other = int(np.argmin(together[i]))
        instead = f", {names[other]} in its place" if together[i, other] < TRADES else ""
        most = f"{high[i] * 1e6:,.1f} us"
        lines.append(f"{names[i]} may be 0 to {most}{instead}: these steps do not tell")
    return lines
