"""Arrival processes and distributions: their moments, their bounds, their words."""

from __future__ import annotations

import numpy as np
import pytest

from traces import draws
from traces.errors import ConfigError

N = 40_000
RATE = 4.0


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def gaps(text: str) -> np.ndarray:
    times = draws.arrivals(text, rng(), N, RATE)
    assert times.shape == (N,)
    assert times[0] > 0
    gaps = np.diff(times)
    assert gaps.min() >= 0
    return gaps


@pytest.mark.parametrize(
    ("text", "cv"), [("poisson", 1.0), ("gamma", 2.0), ("gamma:0.5", 0.5), ("gamma:1", 1.0)]
)
def test_rate_and_variation_of_the_gaps(text: str, cv: float) -> None:
    found = gaps(text)
    # four standard errors: of a mean cv / sqrt(n), of a cv below 2 at most that of cv 2
    assert abs(found.mean() * RATE - 1) < 4 * cv / N**0.5
    assert abs(found.std() / found.mean() - cv) < 0.1


def test_on_and_off_periods() -> None:
    times = draws.arrivals("onoff:5,15", rng(), N, RATE)
    assert abs(N / times[-1] / RATE - 1) < 0.1  # 500 periods of each kind
    found = np.diff(times)
    on = found < 1.0  # a gap of 1 s has probability exp(-16) while on
    assert abs(1 / found[on].mean() / (RATE * 4) - 1) < 0.05
    pauses = found[~on]
    assert abs(pauses.mean() / 15 - 1) < 0.25
    assert abs(len(pauses) * 5 / (found[on].sum()) - 1) < 0.25


def test_on_and_off_keeps_the_poisson_when_never_off() -> None:
    always = draws.onoff(rng(), 100, RATE, 1e9, 1e-9)
    assert np.allclose(always, draws.poisson(rng(), 100, RATE))


def test_log_normal_is_redrawn_within_its_bounds() -> None:
    found = draws.values("lognormal:240,0.6,64,768", rng(), N)
    assert (found.min() >= 64, found.max() <= 768) == (True, True)
    assert abs(np.median(found) / 240 - 1) < 0.02  # the bounds cut nearly alike on both sides
    assert np.mean((found == 64) | (found == 768)) < 0.001  # drawn again, not clipped
    free = draws.values("lognormal:100,0.5,0,1e9", rng(), N)
    assert abs(np.log(free).mean() - np.log(100)) < 0.01
    assert abs(np.log(free).std() - 0.5) < 0.01


def test_fixed() -> None:
    assert draws.values("fixed:512", rng(), 3).tolist() == [512, 512, 512]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("lognorml:1,1,1,1", "distribution: unknown 'lognorml'; did you mean 'lognormal'?"),
        ("lognormal:1,1", "distribution: 'lognormal:1,1' is not lognormal:median,sigma,low,high"),
        ("fixed", "distribution: 'fixed' is not fixed:value"),
        ("fixed:x", "distribution: 'fixed:x' is not fixed:value"),
        ("fixed:nan", "distribution: 'fixed:nan' is not fixed:value"),
        ("fixed:1,2", "distribution: 'fixed:1,2' is not fixed:value"),
        ("lognormal:0,1,1,2", "median is 0, must be above 0"),
        (
            "lognormal:10,0.1,900,999",
            "lognormal:10,0.1,900,999: hardly any value lies in the bounds",
        ),
        ("lognormal:10,1,20,5", "lognormal:10,1,20,5: hardly any value lies in the bounds"),
    ],
)
def test_what_a_distribution_is_not(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as error:
        draws.values(text, rng(), 1)
    assert str(error.value).startswith(what)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("poison", "arrivals: unknown 'poison'; did you mean 'poisson'? (known: gamma, onoff, "),
        ("poisson:1", "arrivals: 'poisson:1' is not poisson"),
        ("gamma:1,2", "arrivals: 'gamma:1,2' is not gamma:cv"),
        ("gamma:-1", "cv is -1, must be above 0"),
        ("onoff:0,1", "on_s is 0, must be above 0"),
    ],
)
def test_what_an_arrival_process_is_not(text: str, what: str) -> None:
    with pytest.raises(ConfigError) as error:
        draws.arrivals(text, rng(), 1, RATE)
    assert str(error.value).startswith(what)
