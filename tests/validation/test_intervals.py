"""Intervals cover the truth for queues, whose requests depend on one another."""

from __future__ import annotations

import numpy as np
import pytest

from traces.metrics import Floats
from validation import intervals
from validation.errors import STATISTICS, statistics
from validation.intervals import block_length, error_intervals, method

TRIALS = 150


def queue(rng: np.random.Generator, trials: int, n: int, load: float = 0.5) -> tuple[Floats, ...]:
    """Times in an M/G/1 queue, and in one 3 % slower with the same arrivals, ``(trials, n)``."""
    burn_in = 200
    shape = (trials, n + burn_in)
    service = rng.lognormal(-0.2, 0.63, shape)
    gap = rng.exponential(1 / load, shape)
    times = []
    for work in (service, 1.03 * service * rng.lognormal(-0.005, 0.1, shape)):
        wait = np.zeros(shape)
        for i in range(1, shape[1]):
            wait[:, i] = np.maximum(0, wait[:, i - 1] + work[:, i - 1] - gap[:, i])
        times.append((wait + work)[:, burn_in:])
    return tuple(times)


@pytest.mark.parametrize("limit", [100_000, 100], ids=["bootstrap", "order statistics"])
def test_coverage_in_a_queue(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "BOOTSTRAP_LIMIT", limit)
    monkeypatch.setattr(intervals, "resamples", lambda n: 100)
    rng = np.random.default_rng(2)
    sides = [statistics(s.ravel()) for s in queue(rng, 400, 2000)]
    truth = sides[1] / sides[0] - 1
    hits = np.zeros(len(STATISTICS))
    for measured, simulated in zip(*queue(rng, TRIALS, 800), strict=True):
        found = [i for i in error_intervals(measured, simulated).values() if i]
        hits += [low <= t <= high for (low, high), t in zip(found, truth, strict=True)]
    coverage = dict(zip(STATISTICS, hits / TRIALS, strict=True))
    for name in ("mean", "p50", "p90"):
        assert 0.90 <= coverage[name] <= 1.0, coverage


def test_independent_data_would_be_covered_by_short_blocks_but_a_queue_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason for long blocks: with blocks of one request the interval is far too short."""
    rng = np.random.default_rng(2)
    measured, simulated = (s[0] for s in queue(rng, 1, 1500, load=0.8))
    long = error_intervals(measured, simulated)["mean"]
    monkeypatch.setattr(intervals, "BLOCKS", 1500)
    short = error_intervals(measured, simulated)["mean"]
    assert long
    assert short
    assert long[1] - long[0] > 1.5 * (short[1] - short[0])


def test_the_two_methods_agree_on_one_series(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    measured, simulated = (s[0] for s in queue(rng, 1, 5000))
    drawn = error_intervals(measured, simulated)
    monkeypatch.setattr(intervals, "BOOTSTRAP_LIMIT", 100)
    derived = error_intervals(measured, simulated)
    for name in ("mean", "p50", "p90"):
        a, b = drawn[name], derived[name]
        assert a
        assert b
        assert a[1] - a[0] == pytest.approx(b[1] - b[0], rel=0.35), name


def test_unpaired_series_of_different_lengths_share_their_cells() -> None:
    """A common swing of both sides does not widen the interval of their ratio."""
    swing = 1 + 0.5 * np.sin(np.linspace(0, 7, 4000))
    noise = np.random.default_rng(0).normal(1, 0.05, 4000)
    measured, simulated = swing * noise, 1.1 * swing[::2] * noise[1::2]
    together = error_intervals(measured, simulated)["mean"]
    apart = error_intervals(measured, simulated[::-1].copy())["mean"]
    assert together
    assert apart
    assert together[0] < 0.1 < together[1]
    assert together[1] - together[0] < 0.2 * (apart[1] - apart[0])


def test_equal_sides_have_no_error_and_few_values_no_interval() -> None:
    values = np.random.default_rng(0).gamma(2, size=100)
    assert error_intervals(values, values)["p90"] == pytest.approx((0, 0), abs=1e-12)
    assert set(error_intervals(values[:19], values[:19]).values()) == {None}
    zeros = error_intervals(np.zeros(100), values)
    assert set(zeros.values()) == {None}


def test_the_same_seed_gives_the_same_interval() -> None:
    rng = np.random.default_rng(1)
    measured, simulated = rng.gamma(2, size=(2, 300))
    one, two = (error_intervals(measured, simulated, seed=s) for s in (5, 5))
    other = error_intervals(measured, simulated, seed=6)
    assert one == two != other


def test_what_an_interval_rests_on_is_stated() -> None:
    assert "blocks of 17 successive values" in method(100, 100)
    assert "order statistics" in method(200_000, 200_000)
    assert method(5, 100) == "none: fewer than 20 values"
    assert block_length(101) == 17
