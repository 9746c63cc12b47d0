"""Fits of a step's terms: what the steps tell is found, what they do not is believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.step_time.fit import fit_profile
from simulator.step_time.regression import Proportion, fit_part
from traces.bundle import read_bundle

TOKEN_S, PAIR_S = 200e-6, 0.1e-6
RATIO = PAIR_S / TOKEN_S / 2  # what operations say; attention is half as efficient


def steps(rng: np.random.Generator, *, cached: bool) -> tuple[np.ndarray, np.ndarray]:
    """Terms (step, tokens, pairs) and seconds, 10 % noise, of prompts in one go or on a cache."""
    tokens = rng.uniform(150, 250, 40)
    context = rng.uniform(0, 4000, 40) if cached else np.zeros(40)
    pairs = tokens * context + tokens * (tokens + 1) / 2
    matrix = np.stack([np.ones(40), tokens, pairs], axis=1)
    seconds = matrix @ [5e-3, TOKEN_S, PAIR_S]
    return matrix, seconds * (1 + 0.1 * rng.standard_normal(40))


def miss(belief: Proportion | None, *, cached: bool) -> float:
    """Root mean square error of fits at 200 tokens on 2,000 cached ones."""
    asked = np.array([1.0, 200.0, 200 * 2000 + 200 * 201 / 2])
    true = asked @ [5e-3, TOKEN_S, PAIR_S]
    found = [
        asked @ fit_part(*steps(np.random.default_rng(seed), cached=cached), belief)
        for seed in range(20)
    ]
    return float(np.sqrt(np.mean((np.array(found) / true - 1) ** 2)))


def test_a_belief_tells_pairs_from_tokens_where_the_steps_do_not() -> None:
    believed = miss(Proportion(2, np.array([0.0, 1.0, 0.0]), RATIO), cached=False)
    assert believed < 0.35
    assert miss(None, cached=False) > 3 * believed


@pytest.mark.parametrize("wrong", [0.1, 10.0])
def test_steps_that_tell_overrule_a_belief(wrong: float) -> None:
    assert miss(Proportion(2, np.array([0.0, 1.0, 0.0]), wrong * RATIO), cached=True) < 0.05


def test_without_a_coefficient_there_is_no_belief() -> None:
    belief = Proportion(1, np.array([1.0, 0.0]), 0.5)
    assert not belief.row(np.zeros(2), 1.0).any()


def test_a_fit_that_leans_on_a_belief_says_so() -> None:
    samples = Path(__file__).parents[2] / "traces" / "samples"
    said = {
        name: fit_profile([read_bundle(samples / name / "rep1")], cluster=cluster).warnings
        for name, cluster in (("dense-pd-low", "prefill"), ("dense-sessions", None))
    }
    told = {name: any("leans on its operations" in w for w in said[name]) for name in said}
    assert told == {"dense-pd-low": True, "dense-sessions": False}
