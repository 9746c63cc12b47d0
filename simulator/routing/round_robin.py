"""Each arrival to the next replica in turn."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.routing.base import Load


class RoundRobin:
    """Blind to load."""

    def __init__(self) -> None:
        self._next = 0

    def observe(self, now_ps: int, replicas: Sequence[Load]) -> None:
        pass

    def choose(self, replicas: Sequence[Load]) -> int:
        chosen = self._next % len(replicas)
        self._next = chosen + 1
        return chosen
