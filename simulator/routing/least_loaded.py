"""Each arrival to the replica with the fewest unfinished requests, the first of equals."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.routing.base import Load


class LeastLoaded:
    """Sees every replica's exact count."""

    def observe(self, now_ps: int, replicas: Sequence[Load]) -> None:
        pass

    def choose(self, replicas: Sequence[Load]) -> int:
        return min(range(len(replicas)), key=lambda i: replicas[i].unfinished)
