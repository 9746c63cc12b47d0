"""Each arrival to the replica with the fewest unfinished requests, the first of equals."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from simulator.clock import NEVER
from simulator.routing.base import Load


class LeastLoaded:
    """Knows every replica's count; O(log replicas) a request.

    The heap holds (count, replica) as they once were; an entry that is no longer true is
    dropped when it comes up, and all of them when they outnumber the replicas by far.
    """

    look_ps = NEVER

    def __init__(self, replicas: Sequence[Load]) -> None:
        self._counts = [0] * len(replicas)
        self._heap = [(0, i) for i in range(len(replicas))]

    def observe(self, now_ps: int) -> None:
        pass

    def choose(self, request: int = 0) -> int:
        heap, counts = self._heap, self._counts
        while counts[heap[0][1]] != heap[0][0]:
            heapq.heappop(heap)
        chosen = heap[0][1]
        counts[chosen] += 1
        heapq.heapreplace(heap, (counts[chosen], chosen))
        return chosen

    def finished(self, replica: int, request: int = 0) -> None:
        self._counts[replica] -= 1
        heapq.heappush(self._heap, (self._counts[replica], replica))
        if len(self._heap) > 8 * len(self._counts):
            self._heap = [(count, i) for i, count in enumerate(self._counts)]
            heapq.heapify(self._heap)
