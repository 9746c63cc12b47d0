"""How transfers share a connection; time is whole picoseconds, shares are exact.

The work of a transfer is the time it takes alone. ``send`` is called in order of time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from math import gcd
from typing import Protocol

from simulator.clock import NEVER


class Channel(Protocol):
    """A connection; ``next_ps`` is when the next transfer leaves it, NEVER if there is none."""

    next_ps: int

    def send(self, transfer: int, work_ps: int, at_ps: int) -> None:
        """A transfer begins."""

    def pop(self) -> int:
        """The transfer that leaves at ``next_ps``."""


class Alone:
    """Each transfer has the whole bandwidth for itself."""

    def __init__(self) -> None:
        self.next_ps = NEVER
        self._ends: list[tuple[int, int, int]] = []
        self._count = 0

    def send(self, transfer: int, work_ps: int, at_ps: int) -> None:
        self._count += 1
        heapq.heappush(self._ends, (at_ps + work_ps, self._count, transfer))
        self.next_ps = self._ends[0][0]

    def pop(self) -> int:
        transfer = heapq.heappop(self._ends)[2]
        self.next_ps = self._ends[0][0] if self._ends else NEVER
        return transfer


class Fifo:
    """One transfer after the other."""

    def __init__(self) -> None:
        self.next_ps = NEVER
        self._ends: deque[tuple[int, int]] = deque()
        self._free_ps = 0

    def send(self, transfer: int, work_ps: int, at_ps: int) -> None:
        self._free_ps = max(self._free_ps, at_ps) + work_ps
        self._ends.append((self._free_ps, transfer))
        self.next_ps = self._ends[0][0]

    def pop(self) -> int:
        transfer = self._ends.popleft()[1]
        self.next_ps = self._ends[0][0] if self._ends else NEVER
        return transfer


class Fair:
    """All transfers under way share the bandwidth equally.

    By virtual time, which n transfers advance at 1/n of the clock: one of work w that begins
    at virtual time v leaves at v + w. Virtual times are fractions of one denominator.
    """

    def __init__(self) -> None:
        self.next_ps = NEVER
        self._ends: list[list[int]] = []  # [virtual time, order, transfer], a heap
        self._count = 0
        self._now_ps = 0
        self._virtual = 0
        self._unit = 1  # of virtual time, to the picosecond

    def send(self, transfer: int, work_ps: int, at_ps: int) -> None:
        self._advance(at_ps)
        self._count += 1
        end = [self._virtual + work_ps * self._unit, self._count, transfer]
        heapq.heappush(self._ends, end)
        self._look()

    def pop(self) -> int:
        self._advance(self.next_ps)
        transfer = heapq.heappop(self._ends)[2]
        self._look()
        return transfer

    def _advance(self, at_ps: int) -> None:
        if self._ends:
            self._virtual += (at_ps - self._now_ps) * (self._unit // len(self._ends))
        else:
            self._virtual, self._unit = 0, 1
        self._now_ps = at_ps

    def _look(self) -> None:
        sharing = len(self._ends)
        if not sharing:
            self.next_ps = NEVER
            return
        if (finer := sharing // gcd(sharing, self._unit)) > 1:
            self._unit *= finer
            self._virtual *= finer
            for end in self._ends:  # all alike: still a heap
                end[0] *= finer
        left = max(0, self._ends[0][0] - self._virtual)
        self.next_ps = self._now_ps - (-left * sharing // self._unit)


CHANNELS: dict[str, Callable[[], Channel]] = {"fair": Fair, "fifo": Fifo, "none": Alone}
