"""The simulator's clock: int64 picoseconds from zero, so that ties are exact.

Events at one time happen in the order of their kind, then of their replica:

0 ``ARRIVAL``   requests reach the front end
1 ``STEP_END``  a replica's step ends
2 ``WAKE``      a replica schedules its next step

What passes between clusters comes before all step ends (``disaggregation/simulation.py``).
"""

from __future__ import annotations

PS_PER_S = 1_000_000_000_000
ARRIVAL, STEP_END, WAKE = 0, 1, 2
NEVER = 1 << 62


def to_ps(seconds: float) -> int:
    """Seconds to picoseconds, rounded to the nearest."""
    return round(seconds * PS_PER_S)


def to_s(ps: int) -> float:
    """Picoseconds to seconds."""
    return ps / PS_PER_S
