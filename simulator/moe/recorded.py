"""Expert counts of a capture as one array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from traces.bundle import Bundle
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExpertCounts:
    """``counts``: tokens per expert, ``(steps, layers, experts)``, steps in order.

    The micro-batches of a step are added up. ``prompts``: of each step the squared tokens of
    each request that has more than one, added up, ``(steps,)``; None if the bundle does not say.
    """

    counts: Ints
    top_k: int
    source: str
    prompts: Floats | None = None

    def tokens(self) -> Ints:
        """Tokens of each step, ``(steps,)``."""
        return np.asarray(self.counts[:, 0].sum(axis=-1) // self.top_k)

    def shares(self) -> Floats:
        """Of a layer's tokens the share that each expert got, ``(layers, experts)``."""
        totals = self.counts.sum(axis=0).astype(float)
        found: Floats = totals / totals.sum(axis=-1, keepdims=True)
        return found


def expert_counts(bundle: Bundle, top_k: int) -> ExpertCounts:
    """The counts of a bundle, its replicas one after another.

    Raises TraceError if it has none, or a step lacks a layer.
    """
    if "experts" not in bundle:
        raise TraceError(f"{bundle.path}: no experts.parquet: no expert loads were recorded")
    frame = bundle.table("experts").to_pandas()
    widths = frame["expert_tokens"].map(len).unique()
    layers = sorted(int(layer) for layer in frame["layer"].unique())
    if len(widths) != 1:
        raise TraceError(f"{bundle.path}/experts.parquet: layers of {sorted(widths)} experts")
    place = {layer: i for i, layer in enumerate(layers)}
    steps, which = np.unique(
        frame[["replica", "step"]].to_numpy(np.int64), axis=0, return_inverse=True
    )
    counts = np.zeros((len(steps), len(layers), int(widths[0])), np.int64)
    seen = np.zeros(counts.shape[:2], bool)
    at = (which.ravel(), frame["layer"].map(place).to_numpy())
    np.add.at(counts, at, np.stack(frame["expert_tokens"].tolist()).astype(np.int64))
    seen[at] = True
    if not seen.all():
        replica, step = steps[int(np.argwhere(~seen)[0, 0])]
        raise TraceError(f"{bundle.path}/experts.parquet: replica {replica}, step {step}: not "
                         f"all of {len(layers)} layers")  # fmt: skip
    kept = counts.sum(axis=(1, 2)) > 0
    sums = counts[kept].sum(axis=-1)
    if (sums != sums[:, :1]).any() or (sums % top_k).any():
        raise TraceError(
            f"{bundle.path}/experts.parquet: counts are not tokens x {top_k} in every layer"
        )
    prompts = _prompts(bundle, steps[kept]) if "step_requests" in bundle else None
    return ExpertCounts(counts[kept], top_k, str(bundle.path), prompts)


def _prompts(bundle: Bundle, steps: Ints) -> Floats:
    """See ``ExpertCounts``; ``steps`` are replica and step, ``(steps, 2)``."""
    table = bundle.table("step_requests")
    tokens = table.column("scheduled_tokens").to_numpy().astype(float)
    table = table.append_column("squared", pa.array(np.where(tokens > 1, tokens**2, 0.0)))
    sums = table.group_by(["replica", "step"]).aggregate([("squared", "sum")])
    names = ("replica", "step", "squared_sum")
    found = {(r, s): q for r, s, q in zip(*(sums[n].to_pylist() for n in names), strict=True)}
    return np.array([found.get((replica, step), 0.0) for replica, step in steps.tolist()])
