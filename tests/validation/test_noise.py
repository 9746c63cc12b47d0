"""The noise floor by hand, and the test against another run by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from validation.noise import detectable, interval_by_run, like_another_run, spread

RUNS = [9.0, 10.0, 11.0]  # mean 10, s 1


def test_spread_by_hand() -> None:
    assert spread(RUNS) == pytest.approx(0.1)
    assert spread([1.0]) is None
    assert spread([1.0, -1.0]) is None


def test_interval_by_run_is_students() -> None:
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    low, high = interval_by_run(RUNS, 11.0)
    assert low == pytest.approx(11 / (10 + half) - 1)
    assert high == pytest.approx(11 / (10 - half) - 1)


def test_an_interval_is_unbounded_where_the_mean_may_be_zero() -> None:
    low, high = interval_by_run([1.0, 9.0], 5.0)
    assert low is not None
    assert high is None


def test_like_another_run_by_hand() -> None:
    reach = stats.t.ppf(0.975, 2) * np.sqrt(1 + 1 / 3)
    assert like_another_run(RUNS, 10 + 0.99 * reach) is True
    assert like_another_run(RUNS, 10 - 1.01 * reach) is False
    assert like_another_run([10.0], 10.0) is None


def test_false_alarms_and_power_are_as_stated() -> None:
    rng = np.random.default_rng(0)
    trials = 2000
    runs = rng.normal(10, 0.3, (trials, 5))
    alarms = [not like_another_run(list(r), rng.normal(10, 0.3)) for r in runs]
    assert 0.04 < np.mean(alarms) < 0.06
    # With the spread known exactly the stated error is found four times in five.
    error = (stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)) * 0.3 * np.sqrt(1.2)
    found = [not like_another_run(list(r), rng.normal(10 + error, 0.3)) for r in runs]
    assert 0.75 < np.mean(found) < 0.87
    assert detectable(RUNS) == pytest.approx(
        (stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * 0.1 * np.sqrt(4 / 3)
    )
