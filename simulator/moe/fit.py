"""A load law from recorded counts: what ``frontier fit`` keeps beside the step times.

Popularity of a layer's experts is their share over the whole record. Around it a step's
popularity drifts (``laws/base.py: Drift``): the variance that the counts c of n picks have
beyond chance, sum (c - n p)^2 - n p (1 - p), relative to (n p)^2, is that of chances with the
layer's spread, and products one step apart are smaller by the correlation. Steps of few tokens,
decodes of as many requests, show little of it; the drift begins above the octaves of tokens
that do. Over layers, popularity is summed up as a Dirichlet distribution, for models and
layers that were not recorded; its concentration by the variance of shares,
E p^2 - 1/E^2 = (1/E)(1 - 1/E) / (E concentration + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from simulator.model import ModelSpec, model_from_config
from simulator.moe.laws import Dirichlet, Drift, LoadLaw, Table
from simulator.moe.laws.table import bounded
from simulator.moe.recorded import ExpertCounts, expert_counts
from simulator.moe.routing import chances, popularity
from traces.bundle import Bundle
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
LOADS = "experts.yaml"
SCHEMA = 1
MOST_CORRELATION = 0.999
MOST_SPREAD = 6.0
TRIALS = 64  # draws that a spread is judged by
LEAST_STEPS = 20  # of an octave of tokens, to say how wide it spreads


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


def fit_bundles(bundles: Sequence[Bundle]) -> FittedLoads | None:
    """Fit one law to the captures that recorded experts, None if none did."""
    records = []
    for bundle in bundles:
        config = bundle.model_config()
        if "experts" in bundle and config is not None:
            moe = model_from_config(config, str(bundle.path)).moe
            records += [expert_counts(bundle, moe.top_k)] if moe is not None else []
    return fit_loads(records) if records else None


def concentration(shares: Floats) -> float:
    """Of a symmetric Dirichlet distribution with as much variance as ``shares`` have."""
    experts = shares.shape[-1]
    variance = float((shares**2).mean() - 1 / experts**2)
    total = (1 - 1 / experts) / (experts * max(variance, 1e-12)) - 1
    return float(max(total / experts, 1e-3))


def _drift(records: list[ExpertCounts], shares: Floats) -> Drift:
    tokens = np.concatenate([r.counts[:, 0].sum(axis=-1) // r.top_k for r in records])
    excess = np.concatenate([_excess(r, shares) for r in records])
    octave = np.ceil(np.log2(tokens)).astype(int)
    sums = [np.bincount(octave, weights=part) for part in excess.sum(axis=2).T]
    by_octave = sums[0] / np.maximum(sums[1], 1e-300)
    # from the octave on from which all are at least half as wide as the widest
    known = np.flatnonzero(np.bincount(octave) >= LEAST_STEPS)
    narrow = np.flatnonzero(by_octave[known] < by_octave[known].max(initial=0.0) / 2)
    beyond = 0
    if len(narrow):  # half way to the first of them, between which little was recorded
        last, first = known[narrow[-1]], known[narrow[-1] + 1]
        beyond = int(2 ** ((last + first - 1) / 2))
    summed, scale = excess[tokens > beyond].sum(axis=0)  # of each layer
    variance = np.maximum(summed / np.maximum(scale, 1e-300), 0.0)
    if not variance.any():
        return Drift()
    spread = tuple(round(float(s), 6) for s in _spread(shares, records[0].top_k, variance))
    overall = max(float(summed.sum() / scale.sum()), 1e-300)
    lag = float(np.clip(_lag(records, shares, beyond) / overall, 0.0, MOST_CORRELATION))
    return Drift(spread, round(lag, 6), beyond)


def _spread(shares: Floats, top_k: int, variance: Floats) -> Floats:
    """Of each layer the spread whose chances vary so much, relative to the mean, by bisection."""
    noise = np.random.default_rng(0).standard_normal((TRIALS, *shares.shape))
    mean = bounded(shares, top_k)
    low, high = np.zeros(len(shares)), np.full(len(shares), MOST_SPREAD)
    for _ in range(30):
        middle = (low + high) / 2
        chance = chances(popularity(mean) * np.exp(middle[:, None] * noise), top_k)
        found = ((chance - mean) ** 2).sum(axis=(0, 2)) / (TRIALS * (mean**2).sum(axis=1))
        low = np.where(found > variance, low, middle)
        high = np.where(found > variance, middle, high)
    return np.where(variance > 0, low, 0.0)


def _excess(record: ExpertCounts, shares: Floats) -> Floats:
    """Of each step the squares beyond chance, and of what is expected, ``(steps, 2, layers)``."""
    counts, chance = record.counts.astype(float), np.minimum(shares * record.top_k, 1.0)
    expected = counts.sum(axis=-1, keepdims=True) / record.top_k * chance
    beyond = (counts - expected) ** 2 - expected * (1 - chance)
    return np.stack([beyond.sum(axis=2), (expected**2).sum(axis=2)], axis=1)


def _lag(records: list[ExpertCounts], shares: Floats, beyond: int) -> float:
    """Covariance of the relative excess of steps of more tokens, each with the next."""
    products = scale = 0.0
    for record in records:
        tokens = record.counts[:, 0].sum(axis=-1) // record.top_k
        counts = record.counts[tokens > beyond].astype(float)
        expected = counts.sum(axis=-1, keepdims=True) * shares
        rest = counts - expected
        products += float((rest[1:] * rest[:-1]).sum())
        scale += float((expected[1:] * expected[:-1]).sum())
    return products / max(scale, 1e-300)


def describe(fitted: FittedLoads) -> str:
    """The law in a line."""
    layers, experts = fitted.shares.shape
    most = float((fitted.shares.max(axis=-1) * experts).mean())
    drift = fitted.drift
    spread = float(np.mean(drift.spread))
    return (
        f"expert loads: {layers} layers of {experts} experts, the most popular {most:.2f} x the "
        f"mean; beyond {drift.beyond} tokens of a step popularity spreads by {spread:.2f}"
    )


def write_fitted(fitted: FittedLoads, profile: Path) -> None:
    """Write ``profile/experts.yaml``."""
    content = {
        "schema": SCHEMA,
        "top_k": fitted.top_k,
        "spread": np.atleast_1d(fitted.drift.spread).tolist(),
        "correlation": fitted.drift.correlation,
        "beyond": fitted.drift.beyond,
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
        spread = tuple(np.atleast_1d(raw["spread"]).astype(float).tolist())
        drift = Drift(spread, float(raw["correlation"]), int(raw["beyond"]))
        shares = np.array(raw["shares"], float)
        alpha = float(raw["concentration"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise TraceError(f"{file}: not the expert loads of a profile") from None
    moe = model.moe
    if moe is not None and shares.shape == (model.moe_layers, moe.experts):
        return Table(shares, drift, str(file))
    return Dirichlet(alpha, replace(drift, spread=float(np.mean(spread))))
