"""Tokens to experts: each token picks ``top_k`` different ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ROUNDS = 60
HALVINGS = 40
WIDEST = 8.0  # deviates, beyond which nothing is expected
LEAST_CHANCE, MOST_CHANCE = 1e-6, 1 - 1e-9


def chances(popularity: Floats, top_k: int) -> Floats:
    """Chance that a token picks each expert, ``(..., experts)``; they sum to ``top_k``.

    Experts are picked without replacement in proportion to ``popularity`` (``(..., experts)``,
    above 0): as the first of independent exponential clocks, of which about top_k have rung
    at time t, 1 - exp(-t popularity) each (Efraimidis and Spirakis, IPL 97(5), 2006).

    >>> chances(np.array([1.0, 1.0, 1.0, 1.0]), 2)
    array([0.5, 0.5, 0.5, 0.5])
    >>> chances(np.array([1e6, 1.0, 1.0]), 2).round(3)
    array([1. , 0.5, 0.5])
    """
    experts = popularity.shape[-1]
    if top_k >= experts:
        return np.ones_like(popularity)
    # bisection on log t; the least popular expert bounds it
    rate = popularity / popularity.mean(axis=-1, keepdims=True)
    low = np.full((*rate.shape[:-1], 1), -20.0)
    high = np.log(50.0 / np.maximum(rate.min(axis=-1, keepdims=True), 1e-12))
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        rung = -np.expm1(-np.exp(middle) * rate)
        above = rung.sum(axis=-1, keepdims=True) > top_k
        high, low = np.where(above, middle, high), np.where(above, low, middle)
    found: Floats = rung * (top_k / rung.sum(axis=-1, keepdims=True))
    return np.minimum(found, 1.0)


def shifted(mean: Floats, spread: Floats, shift: Floats) -> Floats:
    """Chances once the experts' normal scores move by ``spread * shift``, ``(..., experts)``.

    A score is its own normal deviate, of unit width, over one threshold for all; over shifts
    that are normal too, of unit width, each expert's chance is about ``mean``.

    >>> shifted(np.array([0.9, 0.7, 0.3, 0.1]), np.array(0.0), np.zeros(4)).round(6)
    array([0.9, 0.7, 0.3, 0.1])
    >>> shifted(np.full(4, 0.5), np.array(1.0), np.array([1.0, 0.0, 0.0, -1.0])).round(2)
    array([0.84, 0.5 , 0.5 , 0.16])
    """
    from scipy.special import ndtr, ndtri

    inner = np.clip(mean, LEAST_CHANCE, MOST_CHANCE)
    score = np.sqrt(1.0 + spread**2) * ndtri(inner) + spread * shift
    top_k = np.rint(mean.sum(axis=-1, keepdims=True))
    if (top_k >= mean.shape[-1]).any():
        return np.ones_like(score)
    high = score.max(axis=-1, keepdims=True) + WIDEST
    low = score.min(axis=-1, keepdims=True) - WIDEST
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = ndtr(score - middle).sum(axis=-1, keepdims=True) > top_k
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    found = ndtr(score - low)
    scaled: Floats = np.minimum(found * (top_k / found.sum(axis=-1, keepdims=True)), 1.0)
    return scaled


def route(rng: np.random.Generator, chance: Floats, tokens: int) -> Ints:
    """Tokens per expert, ``(..., experts)``, when each of ``tokens`` tokens picks anew.

    ``chance`` as ``chances`` gives it. Every token picks top_k different experts (systematic
    sampling, Madow 1949, over experts in random order), so that the counts sum to
    tokens x top_k and none exceeds ``tokens``.
    """
    order = np.argsort(rng.random(chance.shape), axis=-1)
    upper = np.cumsum(np.take_along_axis(chance, order, axis=-1), axis=-1)
    top_k = np.rint(upper[..., -1:])
    upper[..., -1:] = top_k
    # a token with offset u picks the experts in whose interval u, u + 1, ... fall: of the
    # offsets of all tokens only how many lie between the fractions of the bounds matters
    whole = np.floor(upper + 1e-12)
    fraction = np.maximum(upper - whole, 0.0)
    by_size = np.argsort(fraction, axis=-1)
    edges = np.take_along_axis(fraction, by_size, axis=-1)
    gaps = np.diff(edges, axis=-1, prepend=0.0)
    gaps = np.concatenate([gaps, 1.0 - edges[..., -1:]], axis=-1)
    below = np.cumsum(rng.multinomial(tokens, gaps), axis=-1)[..., :-1]
    offsets = np.empty_like(below)
    np.put_along_axis(offsets, by_size, below, axis=-1)
    picked = tokens * whole.astype(np.int64) + offsets
    counts = np.empty_like(picked)
    np.put_along_axis(counts, order, np.diff(picked, axis=-1, prepend=0), axis=-1)
    return counts
