"""Predicted against measured times of the recorded batches: the operator models' own error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import PS_PER_S
from traces.metrics import Floats
from validation.predicting import Predictor, has_prefill
from validation.recorded_steps import PARTS, Record


def step_errors(records: Sequence[tuple[Record, Predictor]]) -> dict[str, Any]:
    """Errors by part (forward, host, gap) and by kind of step (decode only, with prefill).

    ``records`` are the engines', each with what predicts its steps.
    Each ``{"steps", "measured_s", "predicted_s", "error", "mape"}``: means in seconds, the
    error of their sum, and the mean error of a step; a kind is of host + forward. What no
    step has, or takes no time, is left out.
    """
    ours = {p: np.concatenate([r.parts[p] for r, _ in records]) / PS_PER_S for p in PARTS}
    pairs = [_predicted(*pair) for pair in records]
    theirs = {p: np.concatenate([pair[p] for pair in pairs]) for p in PARTS}
    prefill = np.array([has_prefill(shapes) for r, _ in records for shapes in r.shapes], bool)
    kinds = {"all": prefill | True, "decode": ~prefill, "prefill": prefill}
    whole = ours["forward"] + ours["host"], theirs["forward"] + theirs["host"]
    found = {
        "parts": {p: _error(ours[p], theirs[p], ours[p] >= 0) for p in PARTS},
        "kinds": {k: _error(*whole, chosen) for k, chosen in kinds.items()},
    }
    return {name: {k: v for k, v in group.items() if v} for name, group in found.items()}


def _predicted(record: Record, model: Predictor) -> dict[str, Floats]:
    """Predicted parts, seconds; no host where the record has none (hidden behind the device)."""
    times = [model.times(n, shapes) for n, shapes in enumerate(record.shapes)]
    parts = {p: np.array([getattr(t, p) for t in times], float) / PS_PER_S for p in PARTS}
    parts["host"] = np.where(record.parts["host"] > 0, parts["host"], 0.0)
    return parts


def accumulated_error(record: Record, model: Predictor) -> tuple[Floats, Floats]:
    """How far predicted step times run ahead of the record, with every batch as recorded.

    Returns times and the sum of predicted - measured up to each, both ``(2 n_steps,)``
    seconds, linear in between: its growth over a request's life is what the request would
    wait longer if nothing else changed, least of all the batches.
    """
    parts = {p: v / PS_PER_S for p, v in record.parts.items()}
    predicted = _predicted(record, model)
    took = parts["forward"] + parts["host"]
    end = np.array(record.end_s)
    gap = np.where(parts["gap"] >= 0, predicted["gap"] - parts["gap"], 0.0)
    step = predicted["forward"] + predicted["host"] - took
    late = np.stack([np.append(0.0, gap[:-1]), step], axis=1)
    return np.stack([end - took, end], axis=1).ravel(), np.cumsum(late.ravel())


def _error(
    measured: Floats, predicted: Floats, chosen: npt.NDArray[np.bool_]
) -> dict[str, float | int] | None:
    measured, predicted = measured[chosen], predicted[chosen]
    total = float(measured.sum())
    if not total:
        return None
    above = measured > 0
    return {
        "steps": len(measured),
        "measured_s": float(measured.mean()),
        "predicted_s": float(predicted.mean()),
        "error": float(predicted.sum()) / total - 1,
        "mape": float(np.mean(np.abs(predicted[above] / measured[above] - 1))),
    }
