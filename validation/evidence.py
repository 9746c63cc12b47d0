"""Whether an error that grew between two scorecards has grown beyond what chance does.

same measured runs, with repeats   abs(error) > k noise: only the simulator has moved
same measured run, no repeats      the interval of the error lies beyond the old error
measured anew, or A/A              abs(error) > k s and growth > t s sqrt(f)

In the last row s is the noise pooled over both scorecards' repeats and over how far measured
moved between them, at least the median over the metric's statistics (of many estimates from
few runs some are small by chance); f counts the runs whose chance went into the difference,
each mean of n runs with 1 / n, shared runs not at all; t is Student's at 95 %, two-sided.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from scipy import stats

from validation.scorecard import MetricErrors, Scorecard, Statistic


@dataclass(frozen=True, slots=True)
class Draws:
    """The runs of the real system behind two scorecards.

    ``runs`` of each (now, base), ``distinct`` in both; ``factor`` is the variance of the
    difference of their means in variances of one run, 0 for the same runs; ``simulated``
    that of the simulated sides: 2 where both are captures of the real system.
    """

    runs: tuple[int, int]
    distinct: int
    factor: float
    simulated: float


def draws_of(now: Scorecard, base: Scorecard) -> Draws:
    """The runs behind a scorecard and the one it is held to."""
    here, there = (
        {str(s["hash"]) for s in (p["measured"], *p.get("repeats", ()))}
        for p in (now.provenance, base.provenance)
    )
    shared = len(here & there)
    factor = 1 / len(here) + 1 / len(there) - 2 * shared / (len(here) * len(there))
    hashes = {c.provenance["simulated"]["hash"] for c in (now, base)}
    real = now.provenance.get("comparison") == "A/A" and len(hashes) > 1
    factor = 0.0 if here == there else factor
    return Draws((len(here), len(there)), len(here | there), factor, 2.0 * real)


def usual_noise(now: MetricErrors, old: MetricErrors, draws: Draws) -> float:
    """Median of the pooled noise over a metric's statistics; 0 if nothing tells."""
    pairs = ((s, old.statistics.get(key)) for key, s in now.statistics.items())
    noises = [_pooled_noise(s, o, draws) for s, o in pairs if o is not None]
    return statistics.median([n for n in noises if n is not None] or [0.0])


def evident(now: Statistic, old: Statistic, draws: Draws, usual: float, multiple: float) -> bool:
    """Whether the growth stands out of noise; see the module's table."""
    error, before = abs(now.error or 0.0), abs(old.error or 0.0)
    if not draws.factor and not draws.simulated:
        if now.noise is not None:
            return error > multiple * now.noise
        return _size(now)[0] > before
    noise = _pooled_noise(now, old, draws)
    if noise is None:
        return False
    if now.noise is None and old.noise is None and _size(now)[0] <= _size(old)[1]:
        return False  # without repeats the intervals must not meet either
    noise = max(noise, usual)
    t = float(stats.t.ppf(0.975, draws.distinct - 1))
    spread = noise * math.sqrt(draws.factor + draws.simulated)
    return error > multiple * noise and error - before > t * spread


def _pooled_noise(now: Statistic, old: Statistic, draws: Draws) -> float | None:
    """Noise of one run as a fraction, with a degree of freedom less than runs; None for one."""
    parts = [
        (s.noise**2, n - 1)
        for s, n in zip((now, old), draws.runs, strict=True)
        if s.noise is not None
    ]
    if draws.factor and old.measured:
        parts.append(((now.measured / old.measured - 1) ** 2 / draws.factor, 1))
    weight = sum(n for _, n in parts)
    return math.sqrt(sum(v * n for v, n in parts) / weight) if weight else None


def _size(statistic: Statistic) -> tuple[float, float]:
    """Smallest and largest abs(error) that the interval allows."""
    error = statistic.error or 0.0
    low, high = statistic.ci or (error, error)
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    inside = low <= 0 <= high
    return 0.0 if inside else min(abs(low), abs(high)), max(abs(low), abs(high))
