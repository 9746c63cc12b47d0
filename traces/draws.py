"""What synthetic workloads are drawn from: arrival processes and distributions, by name.

On the command line each is written ``name`` or ``name:number,number,...``; every draw takes
the one random generator of the workload.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import ConfigError, nearest

Floats = npt.NDArray[np.float64]
Rng = np.random.Generator

LEAST_KEPT = 1e-3  # of a distribution that is drawn again outside its bounds


def poisson(rng: Rng, n: int, rate_per_s: float) -> Floats:
    """Arrival times, ``(n,)`` seconds: independent exponential gaps."""
    return np.cumsum(rng.exponential(1 / rate_per_s, n))


def gamma(rng: Rng, n: int, rate_per_s: float, cv: float = 2.0) -> Floats:
    """Arrival times with gamma gaps of coefficient of variation ``cv``; 1 is Poisson.

    ``vllm bench serve`` calls 1 / cv**2 its burstiness.
    """
    _positive(cv=cv)
    return np.cumsum(rng.gamma(cv**-2, cv**2 / rate_per_s, n))


def onoff(rng: Rng, n: int, rate_per_s: float, on_s: float = 10.0, off_s: float = 10.0) -> Floats:
    """Arrival times of an interrupted Poisson process that begins switched on.

    Periods on and off are exponential with means ``on_s`` and ``off_s``; nothing arrives
    while off, and while on so much that the mean rate over both is ``rate_per_s``.
    """
    _positive(on_s=on_s, off_s=off_s)
    busy_s = poisson(rng, n, rate_per_s * (on_s + off_s) / on_s)  # as if never off
    ends_s = np.empty(0)
    while ends_s.size == 0 or ends_s[-1] < busy_s[-1]:
        ends_s = np.append(ends_s, np.cumsum(rng.exponential(on_s, 64)) + ends_s[-1:].sum())
    pauses_s = np.cumsum(rng.exponential(off_s, len(ends_s)))
    over = np.searchsorted(ends_s, busy_s)  # periods that ended before each arrival
    return busy_s + np.where(over > 0, pauses_s[over - 1], 0.0)


def fixed(rng: Rng, n: int, value: float) -> Floats:
    """Always the same value."""
    return np.full(n, value)


def lognormal(rng: Rng, n: int, median: float, sigma: float, low: float, high: float) -> Floats:
    """Log-normal values, drawn again while outside [low, high]; sigma is that of the log."""
    _positive(median=median, sigma=sigma)
    edges = [_normal_cdf(math.log(x / median) / sigma) if x > 0 else 0.0 for x in (low, high)]
    if not edges[1] - edges[0] >= LEAST_KEPT:
        raise ConfigError(
            f"lognormal:{median:g},{sigma:g},{low:g},{high:g}: hardly any value lies in the bounds"
        )
    found = np.empty(0)
    while len(found) < n:
        drawn = rng.lognormal(math.log(median), sigma, n)
        found = np.append(found, drawn[(drawn >= low) & (drawn <= high)])
    return found[:n]


ARRIVALS: dict[str, Callable[..., Floats]] = {"poisson": poisson, "gamma": gamma, "onoff": onoff}
DISTRIBUTIONS: dict[str, Callable[..., Floats]] = {"fixed": fixed, "lognormal": lognormal}


def arrivals(text: str, rng: Rng, n: int, rate_per_s: float) -> Floats:
    """``n`` arrival times in seconds of the process ``text`` names. Raises ConfigError."""
    return _draw("arrivals", ARRIVALS, text, rng, n, rate_per_s)


def values(text: str, rng: Rng, n: int) -> Floats:
    """``n`` values of the distribution ``text`` names. Raises ConfigError."""
    return _draw("distribution", DISTRIBUTIONS, text, rng, n)


def _draw(what: str, known: Mapping[str, Callable[..., Floats]], text: str, *given: Any) -> Floats:
    name, _, rest = text.partition(":")
    if name not in known:
        raise ConfigError(f"{what}: unknown {name!r}{nearest(name, known)}")
    own = list(inspect.signature(known[name]).parameters.values())[len(given) :]
    usage = f"{name}:{','.join(p.name for p in own)}" if own else name
    try:
        numbers = [float(x) for x in rest.split(",")] if rest else []
    except ValueError:
        raise ConfigError(f"{what}: {text!r} is not {usage}") from None
    least = sum(p.default is p.empty for p in own)
    if not least <= len(numbers) <= len(own) or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{what}: {text!r} is not {usage}")
    return known[name](*given, *numbers)


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ConfigError(f"{name} is {number:g}, must be above 0")


def _normal_cdf(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2
