"""Gradient-boosted trees: fitted by scikit-learn, kept as plain arrays, evaluated by numba.

A model on disk is data: the nodes of all trees, one after another. Nothing is pickled, and
nothing of scikit-learn is needed to predict.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Boosting:
    """How large a boosted model may grow. ``loss`` is scikit-learn's name of it."""

    trees: int
    rate: float
    leaves: int
    loss: str = "absolute_error"
    penalty: float = 1.0


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


def fit_trees(features: Floats, target: Floats, how: Boosting) -> Trees:
    """Fit rows ``(n, features)`` to ``target`` ``(n,)``; deterministic, one thread.

    scikit-learn's histogram boosting (Ke et al., LightGBM, NIPS 2017). A leaf holds at least
    one row in 300, so that small tables are not learned by heart.
    """
    from threadpoolctl import threadpool_limits

    from simulator.operators.boosting import MedianBoosting

    model = MedianBoosting(
        loss=how.loss, max_iter=how.trees, learning_rate=how.rate, max_leaf_nodes=how.leaves,
        min_samples_leaf=int(np.clip(len(target) // 300, 3, 20)),
        l2_regularization=how.penalty, early_stopping=False, random_state=0,
    )  # fmt: skip
    unknown = np.isnan(features).all(axis=0)  # such a column cannot be binned, nor be of use
    features = np.where(unknown, 0.0, features)
    with threadpool_limits(1):  # spinning threads of others on a shared machine cost tenfold
        model.fit(features, target)
    return _flatten(model)


def _flatten(model: Any) -> Trees:
    """The nodes of scikit-learn's predictors as arrays, children counted from the first tree."""
    nodes = [tree.nodes for (tree,) in model._predictors]
    sizes = np.array([len(n) for n in nodes], np.int32)
    root = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    joined = np.concatenate(nodes)
    first = np.repeat(root, sizes)
    leaf = joined["is_leaf"].astype(bool)
    return Trees(
        float(np.ravel(model._baseline_prediction)[0]),
        root,
        np.where(leaf, -1, joined["feature_idx"]).astype(np.int16),
        joined["num_threshold"].astype(np.float64),
        joined["missing_go_to_left"].astype(bool),
        (joined["left"] + first).astype(np.int32),
        (joined["right"] + first).astype(np.int32),
        joined["value"].astype(np.float64),
    )


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
