"""Statistics with answers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from validation.errors import (
    STATISTICS,
    distances,
    ks,
    paired_mae,
    paired_mape,
    relative_error,
    statistics,
    wasserstein,
)

ONE_TO_TEN = np.arange(1.0, 11.0)


def test_mean_and_percentiles_by_hand() -> None:
    found = dict(zip(STATISTICS, statistics(ONE_TO_TEN), strict=True))
    assert found == pytest.approx({"mean": 5.5, "p50": 5.5, "p90": 9.1, "p95": 9.55, "p99": 9.91})


def test_statistics_of_many_samples_at_once_are_those_of_each() -> None:
    rows = np.random.default_rng(0).gamma(2, size=(4, 33))
    at_once = statistics(rows)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(at_once[:, i], statistics(row))


def test_distances_by_hand() -> None:
    shifted = ONE_TO_TEN + 3
    assert ks(ONE_TO_TEN, shifted) == pytest.approx(0.3)
    assert wasserstein(ONE_TO_TEN, shifted) == pytest.approx(3)
    assert paired_mae(ONE_TO_TEN, shifted) == pytest.approx(3)
    assert paired_mape(ONE_TO_TEN, 1.1 * ONE_TO_TEN) == pytest.approx(0.1)
    assert paired_mape(np.array([0.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(0.5)
    assert paired_mape(np.zeros(2), np.ones(2)) is None


def test_distances_against_scipy() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.gamma(2, size=300), rng.gamma(2.2, size=400)
    assert ks(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)
    # The area between two distribution functions, by quantiles.
    u = (np.arange(120_000) + 0.5) / 120_000
    area = np.mean(np.abs(np.quantile(a, u, method="inverted_cdf")
                          - np.quantile(b, u, method="inverted_cdf")))  # fmt: skip
    assert wasserstein(a, b) == pytest.approx(area, rel=1e-6)


@given(arrays(float, st.tuples(st.just(2), st.integers(1, 40)), elements=st.floats(0, 1e6)))
def test_wasserstein_of_samples_of_one_size_is_scipys(sides: np.ndarray) -> None:
    expected = stats.wasserstein_distance(*sides)
    assert wasserstein(*sides) == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_paired_distances_leave_out_pairs_without_a_value() -> None:
    a = np.array([1.0, np.nan, 3.0, 4.0])
    b = np.array([2.0, 5.0, np.nan, 4.0])
    found = distances(a, b, paired=True)
    assert found["paired_mae"] == pytest.approx(0.5)
    assert found["paired_mape"] == pytest.approx(0.5)
    assert set(distances(a, b, paired=False)) == {"ks", "wasserstein"}
    assert distances(a, np.full(4, np.nan), paired=True) == {}


@pytest.mark.parametrize(
    ("measured", "simulated", "error"),
    [(2.0, 3.0, 0.5), (2.0, 1.0, -0.5), (0.0, 0.0, 0.0), (0.0, 1.0, None)],
)
def test_relative_error(measured: float, simulated: float, error: float | None) -> None:
    assert relative_error(measured, simulated) == error
