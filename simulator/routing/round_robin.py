"""Each arrival to the next replica in turn."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.clock import NEVER
from simulator.routing.base import Load


class RoundRobin:
    """Blind to load."""

    look_ps = NEVER

    def __init__(self, replicas: Sequence[Load]) -> None:
        self._replicas = len(replicas)
        self._next = 0

    def observe(self, now_ps: int) -> None:
        pass

    def choose(self, request: int = 0) -> int:
        chosen = self._next
        self._next = (chosen + 1) % self._replicas
        return chosen

    def finished(self, replica: int, request: int = 0) -> None:
        pass
