"""Intervals cover the truth for queues, whose requests depend on one another."""

from __future__ import annotations

import numpy as np
import pytest

from traces.metrics import Floats
from validation import intervals
from validation.errors import STATISTICS, statistics
from validation.intervals import block_length, blocks, error_intervals, method

BURN_IN = 300


def queue(
    rng: np.random.Generator, trials: int, n: int, load: float = 0.5, *, paired: bool = True
) -> tuple[Floats, Floats]:
    """Times in an M/G/1 queue, and in one 3 % slower, ``(trials, n)`` each.

    ``paired``: the same requests arrive at the same times and take alike.
    """
    shape = (trials, n + BURN_IN)
    service, gap = rng.lognormal(-0.2, 0.63, shape), rng.exponential(1 / load, shape)
    sides = [_times(service, gap)]
    if paired:
        service = service * rng.lognormal(-0.005, 0.1, shape)
    else:
        service, gap = rng.lognormal(-0.2, 0.63, shape), rng.exponential(1 / load, shape)
    sides.append(_times(1.03 * service, gap))
    return sides[0], sides[1]


def _times(service: Floats, gap: Floats) -> Floats:
    """Lindley's recursion, from an empty queue."""
    wait = np.zeros(service.shape)
    for i in range(1, service.shape[1]):
        wait[:, i] = np.maximum(0, wait[:, i - 1] + service[:, i - 1] - gap[:, i])
    times: Floats = (wait + service)[:, BURN_IN:]
    return times


def coverage(trials: int, n: int, load: float, *, paired: bool, seed: int = 11) -> dict[str, float]:
    """Share of trials whose interval holds the truth, by statistic."""
    rng = np.random.default_rng(seed)
    sides = [statistics(s.ravel()) for s in queue(rng, 800, 4000, load, paired=paired)]
    truth = sides[1] / sides[0] - 1
    hits = np.zeros(len(STATISTICS))
    for measured, simulated in zip(*queue(rng, trials, n, load, paired=paired), strict=True):
        found = error_intervals(measured, simulated).values()
        hits += [i is not None and i[0] <= t <= i[1] for i, t in zip(found, truth, strict=True)]
    return dict(zip(STATISTICS, (hits / trials).tolist(), strict=True))


@pytest.mark.long
@pytest.mark.parametrize(
    ("load", "paired"), [(0.5, True), (0.7, False)], ids=["0.5, paired", "0.7, nothing shared"]
)
def test_the_interval_holds_the_truth_in_95_percent_of_2000_queues(
    load: float, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "resamples", lambda n: 100)
    found = coverage(2000, 1000, load, paired=paired)
    print(f"\nload {load}, {'paired' if paired else 'nothing shared'}: {found}")
    assert 0.93 <= found["mean"] <= 0.97
    for name in ("p50", "p90", "p95"):
        assert found[name] >= 0.925, found


@pytest.mark.parametrize("limit", [100_000, 100], ids=["bootstrap", "order statistics"])
def test_coverage_in_a_queue(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "BOOTSTRAP_LIMIT", limit)
    monkeypatch.setattr(intervals, "resamples", lambda n: 100)
    found = coverage(150, 800, 0.5, paired=True, seed=2)
    for name in ("mean", "p50", "p90"):
        assert 0.90 <= found[name] <= 1.0, found


def test_a_dependent_series_is_cut_into_fewer_blocks() -> None:
    rng = np.random.default_rng(0)
    independent = rng.gamma(2, size=(2, 1000))
    assert blocks(*independent) == 3.0
    queues = queue(rng, 1, 1000, load=0.8)
    assert 2.125 <= blocks(queues[0][0], queues[1][0]) < 2.9
    assert blocks(independent[0], independent[0]) == 3.0  # nothing differs


def test_independent_data_would_be_covered_by_short_blocks_but_a_queue_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason for long blocks: with blocks of one request the interval is far too short."""
    rng = np.random.default_rng(2)
    measured, simulated = (s[0] for s in queue(rng, 1, 1500, load=0.8))
    long = error_intervals(measured, simulated)["mean"]
    monkeypatch.setattr(intervals, "blocks", lambda measured, simulated: 1500.0)
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
    values = np.random.default_rng(0).gamma(2, size=200_000)
    assert "blocks of 34 successive values, 500 draws" in method(values[:100], values[:100])
    assert "order statistics" in method(values, values[::-1])
    assert method(values[:5], values) == "none: fewer than 20 values above zero"
    assert block_length(101, 6) == 17
