"""A load law from recorded counts: what ``frontier fit`` keeps beside the step times.

The chance p of a layer's experts is their share over the whole record, and around it those of
a prompt vary (``laws/base.py: Prompts``): what the counts c of a step of T tokens vary beyond
chance, (c - T p)^2 - T p (1 - p), is the variance of chances at the layer's spread, times the
squared tokens of each prompt in the step; products one step apart are smaller by the correlation.
A prompt is as long as the one that the mean token of these steps is of. Over layers, popularity
is summed up as a Dirichlet distribution, for models and layers that were not recorded; its
concentration by the variance of shares,
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
from simulator.moe.laws import Dirichlet, LoadLaw, Prompts, Table
from simulator.moe.laws.table import bounded
from simulator.moe.recorded import ExpertCounts, expert_counts
from simulator.moe.routing import HALVINGS, shifted
from traces.bundle import Bundle
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
LOADS = "experts.yaml"
SCHEMA = 1
MOST_CORRELATION = 0.999
MOST_SPREAD = 6.0
TRIALS = 256  # draws that a spread is judged by


@dataclass(frozen=True, slots=True)
class FittedLoads:
    """Popularity ``shares`` (layers, experts), how alike prompts are, and its law over layers."""

    shares: Floats
    top_k: int
    prompts: Prompts
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
    return FittedLoads(shares, records[0].top_k, _prompts(records, shares), concentration(shares))


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


def _prompts(records: list[ExpertCounts], shares: Floats) -> Prompts:
    """How alike the tokens of a prompt are, from the steps that have one."""
    mean = bounded(shares, records[0].top_k)
    known = [(r, r.prompts, r.prompts > 0) for r in records if r.prompts is not None]
    squares = sum(float(prompts.sum()) for _, prompts, _ in known)
    if not squares:
        return Prompts()
    excess = sum(_excess(record, mean)[at].sum(axis=0) for record, _, at in known)
    variance = np.maximum(excess / squares, 0.0)
    if not variance.any():
        return Prompts()
    spread = tuple(round(float(s), 6) for s in _spread(mean, variance))
    lag = float(np.clip(_lag(known, mean) / variance.sum(), 0.0, MOST_CORRELATION))
    tokens = sum(int(record.tokens()[at].sum()) for record, _, at in known)
    return Prompts(spread, round(lag, 6), max(round(squares / tokens), 1))


def _spread(mean: Floats, variance: Floats) -> Floats:
    """Of each layer the spread whose chances have this variance, by bisection."""
    noise = np.random.default_rng(0).standard_normal((TRIALS, *mean.shape))
    low, high = np.zeros(len(mean)), np.full(len(mean), MOST_SPREAD)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        chance = shifted(mean, middle[:, None], noise)
        found = ((chance - mean) ** 2).sum(axis=(0, 2)) / TRIALS
        low = np.where(found > variance, low, middle)
        high = np.where(found > variance, middle, high)
    return np.where(variance > 0, low, 0.0)


def _excess(record: ExpertCounts, mean: Floats) -> Floats:
    """Of each step the squares of its counts beyond chance, ``(steps, layers)``."""
    expected = record.tokens()[:, None, None] * mean
    beyond: Floats = ((record.counts - expected) ** 2 - expected * (1 - mean)).sum(axis=2)
    return beyond


def _lag(known: list[tuple[ExpertCounts, Floats, Flags]], mean: Floats) -> float:
    """Covariance, summed over layers, of chances in steps with a prompt, each with the next."""
    products = scale = 0.0
    for record, _, at in known:
        tokens = record.tokens()[at].astype(float)
        rest = record.counts[at] - tokens[:, None, None] * mean
        products += float((rest[1:] * rest[:-1]).sum())
        scale += float((tokens[1:] * tokens[:-1]).sum())
    return products / max(scale, 1e-300)


def describe(fitted: FittedLoads) -> str:
    """The law in a line."""
    layers, experts = fitted.shares.shape
    most = float((fitted.shares.max(axis=-1) * experts).mean())
    prompts = fitted.prompts
    spread = float(np.mean(prompts.spread))
    return (
        f"expert loads: {layers} layers of {experts} experts, the most popular {most:.2f} x the "
        f"mean; {prompts.tokens} tokens of a prompt share a popularity that spreads by {spread:.2f}"
    )


def write_fitted(fitted: FittedLoads, profile: Path) -> None:
    """Write ``profile/experts.yaml``."""
    content = {
        "schema": SCHEMA,
        "top_k": fitted.top_k,
        "spread": np.atleast_1d(fitted.prompts.spread).tolist(),
        "correlation": fitted.prompts.correlation,
        "prompt_tokens": fitted.prompts.tokens,
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
        prompts = Prompts(spread, float(raw["correlation"]), int(raw["prompt_tokens"]))
        shares = np.array(raw["shares"], float)
        alpha = float(raw["concentration"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise TraceError(f"{file}: not the expert loads of a profile") from None
    moe = model.moe
    if moe is not None and shares.shape == (model.moe_layers, moe.experts):
        return Table(shares, prompts, str(file))
    return Dirichlet(alpha, replace(prompts, spread=float(np.mean(spread))))
