"""A load law from recorded counts: what ``frontier fit`` keeps beside the step times.

Popularity of a layer's experts is their share over the whole record. Around it a step's
popularity drifts (``laws/base.py: Drift``): the variance that the counts c of n picks have
beyond chance, sum (c - n p)^2 - n p (1 - p), is (n p)^2 spread^2, and the same products one
step apart are (n p)(n' p) spread^2 correlation. Over layers, popularity is summed up as a
Dirichlet distribution, for models and layers that were not recorded; its concentration by
the variance of shares, E p^2 - 1/E^2 = (1/E)(1 - 1/E) / (E concentration + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from simulator.model import ModelSpec
from simulator.moe.laws import Dirichlet, Drift, LoadLaw, Table
from simulator.moe.recorded import ExpertCounts
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
LOADS = "experts.yaml"
SCHEMA = 1
MOST_CORRELATION = 0.999


@dataclass(frozen=True, slots=True)
class FittedLoads:
    """Popularity ``shares`` (layers, experts), its drift, and its law over layers."""

    shares: Floats
    top_k: int
    drift: Drift
    concentration: float


def fit_loads(records: list[ExpertCounts]) -> FittedLoads:
    """Fit one law to the counts of captures of one model.

    Raises TraceError if they are not of one model.
    """
    kinds = {(r.counts.shape[1:], r.top_k) for r in records}
    if len(kinds) != 1:
        raise TraceError("experts.parquet of the bundles: not the same layers and experts")
    counts = np.concatenate([r.counts for r in records]).astype(float)
    totals = counts.sum(axis=0)
    shares = totals / totals.sum(axis=-1, keepdims=True)
    return FittedLoads(shares, records[0].top_k, _drift(records, shares), concentration(shares))


def concentration(shares: Floats) -> float:
    """Of a symmetric Dirichlet distribution with as much variance as ``shares`` have."""
    experts = shares.shape[-1]
    variance = float((shares**2).mean() - 1 / experts**2)
    total = (1 - 1 / experts) / (experts * max(variance, 1e-12)) - 1
    return float(max(total / experts, 1e-3))


def _drift(records: list[ExpertCounts], shares: Floats) -> Drift:
    beyond = squares = lagged = products = 0.0
    for record in records:
        counts = record.counts.astype(float)
        tokens = counts.sum(axis=-1, keepdims=True) / record.top_k
        chance = np.minimum(shares * record.top_k, 1.0)
        expected = tokens * chance
        rest = counts - expected
        beyond += float((rest**2 - expected * (1 - chance)).sum())
        squares += float((expected**2).sum())
        lagged += float((rest[1:] * rest[:-1]).sum())
        products += float((expected[1:] * expected[:-1]).sum())
    variance = max(beyond / squares, 0.0)
    if variance == 0.0 or products == 0.0:
        return Drift()
    # of a log-normal factor with mean 1 the variance is exp(spread^2) - 1
    spread = float(np.sqrt(np.log1p(variance)))
    correlation = float(np.clip(lagged / products / variance, 0.0, MOST_CORRELATION))
    return Drift(round(spread, 6), round(correlation, 6))


def write_fitted(fitted: FittedLoads, profile: Path) -> None:
    """Write ``profile/experts.yaml``."""
    content = {
        "schema": SCHEMA,
        "top_k": fitted.top_k,
        "spread": fitted.drift.spread,
        "correlation": fitted.drift.correlation,
        "concentration": round(fitted.concentration, 6),
        "shares": [[round(float(p), 6) for p in row] for row in fitted.shares],
    }
    (profile / LOADS).write_text(yaml.safe_dump(content, sort_keys=False, width=100))


def read_fitted(profile: Path, model: ModelSpec) -> LoadLaw:
    """The law of ``profile/experts.yaml``: the recorded layers, or for a model of other layers
    the Dirichlet distribution fitted to them. Raises TraceError."""
    file = profile / LOADS
    try:
        raw = yaml.safe_load(file.read_text())
        drift = Drift(float(raw["spread"]), float(raw["correlation"]))
        shares = np.array(raw["shares"], float)
        alpha = float(raw["concentration"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise TraceError(f"{file}: not the expert loads of a profile") from None
    moe = model.moe
    if moe is not None and shares.shape == (model.moe_layers, moe.experts):
        return Table(shares, drift, str(file))
    return Dirichlet(alpha, drift)
