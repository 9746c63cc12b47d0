"""When requests reach the front end: at their own times, or as others finish."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from simulator.clock import NEVER
from simulator.demand import Demand


class Arrivals(Protocol):
    """Releases requests; ``next_ps`` is when the next one arrives, ``NEVER`` if none is due.

    ``coupled``: a finished request may release another, so that no replica may run ahead.
    """

    next_ps: int
    coupled: bool

    def pop(self) -> int:
        """The request (row of the demand) that arrives at ``next_ps``."""

    def finished(self, now_ps: int) -> None:
        """A request finished."""


class OpenLoop:
    """Every request at its own arrival time."""

    coupled = False

    def __init__(self, demand: Demand) -> None:
        self._times = demand.arrival_ps
        self._index = 0
        self.next_ps = self._times[0] if len(demand) else NEVER

    def pop(self) -> int:
        index = self._index
        self._index += 1
        self.next_ps = self._times[index + 1] if index + 1 < len(self._times) else NEVER
        return index

    def finished(self, now_ps: int) -> None:
        pass


class ClosedLoop:
    """``concurrency`` requests in flight from time zero: one is sent when one finishes."""

    coupled = True

    def __init__(self, demand: Demand, concurrency: int) -> None:
        self._demand = demand
        self._index = 0
        self._due = deque([0] * min(concurrency, len(demand)))
        self._released = len(self._due)
        self.next_ps = 0 if self._due else NEVER

    def pop(self) -> int:
        index = self._index
        self._demand.records["arrival_ps"][index] = self._due.popleft()
        self._index += 1
        self.next_ps = self._due[0] if self._due else NEVER
        return index

    def finished(self, now_ps: int) -> None:
        if self._released < len(self._demand):
            self._released += 1
            self._due.append(now_ps)
            self.next_ps = self._due[0]
