"""Gradient-boosted trees, kept as plain arrays and evaluated by numba.

A model on disk is data: the nodes of all trees, one after another. Nothing is pickled.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trees:
    """Nodes of all trees; ``root`` is each tree's first node, a leaf has feature -1.

    A row goes left where its feature is at most ``threshold``, or is NaN and
    ``missing_left`` is set.
    """

    start: float
    root: npt.NDArray[np.int32]
    feature: npt.NDArray[np.int16]
    threshold: Floats
    missing_left: npt.NDArray[np.bool_]
    left: npt.NDArray[np.int32]
    right: npt.NDArray[np.int32]
    value: Floats

    def predict(self, features: Floats) -> Floats:
        """Predict rows ``(n, features)``; the unit is that of the fitted target."""
        rows = np.ascontiguousarray(features, dtype=np.float64)
        found: Floats = _predict(
            rows, self.start, self.root, self.feature, self.threshold, self.missing_left,
            self.left, self.right, self.value,
        )  # fmt: skip
        return found

    def arrays(self) -> dict[str, Any]:
        """The fields by name, to be written."""
        return {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def of(cls, arrays: dict[str, Any]) -> Trees:
        """Inverse of ``arrays``."""
        return cls(**{**arrays, "start": float(arrays["start"])})


@njit(cache=True)
def _predict(rows, start, root, feature, threshold, missing_left, left, right, value):  # type: ignore[no-untyped-def]  # pragma: no cover
    found = np.full(rows.shape[0], start)
    for tree in root:  # tree by tree: its nodes stay in the cache
        for i in range(rows.shape[0]):
            node = tree
            while feature[node] >= 0:
                x = rows[i, feature[node]]
                go_left = missing_left[node] if np.isnan(x) else x <= threshold[node]
                node = left[node] if go_left else right[node]
            found[i] += value[node]
    return found
