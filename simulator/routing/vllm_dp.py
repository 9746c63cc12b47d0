"""vLLM's choice of data-parallel rank, stale snapshots included.

``DPLBAsyncMPClient.get_core_engine_for_request`` (v1/engine/core_client.py, 0.32.0): the
front end knows its own unfinished requests exactly and the ranks' queues from a snapshot
that the coordinator publishes at most every 100 ms, when something changed. In 0.19.0 it went
by the snapshot alone, waiting x 4 + running, and every scan started at the same rank.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator.clock import PS_PER_S
from simulator.routing.base import Load

PUBLISH_INTERVAL_PS = PS_PER_S // 10


class VllmDP:
    """One API server (``client_count`` = 1); ``by_queue`` is the rule of 0.19.0."""

    def __init__(self, replicas: Sequence[Load], *, by_queue: bool = False) -> None:
        self._replicas = replicas
        self._by_queue = by_queue
        self._start = 0
        self.look_ps = 0
        self._published: list[tuple[int, int, float]] = []
        self.publish([(0, 0, 0.0)] * len(replicas))

    def observe(self, now_ps: int) -> None:
        if now_ps < self.look_ps:
            return
        loads = [(r.waiting, r.running, r.kv_usage) for r in self._replicas]
        if loads != self._published:
            self.look_ps = now_ps + PUBLISH_INTERVAL_PS
            self._published = loads
            self.publish(loads)

    def publish(self, loads: Sequence[tuple[int, int, float]]) -> None:
        """A snapshot of (waiting, running, kv usage) per rank reaches the front end."""
        self._snapshot = list(loads)
        self._sent_since = [0] * len(loads)

    def choose(self, request: int = 0) -> int:
        replicas = self._replicas
        best, best_score = 0, float("inf")
        for i in range(len(replicas)):
            rank = (self._start + i) % len(replicas)
            waiting, running, kv_usage = self._snapshot[rank]
            waiting += self._sent_since[rank]
            if self._by_queue:
                score: float = 4 * waiting + running
            else:
                score = max(replicas[rank].unfinished, waiting + running)
                score += waiting * 6.0 * max(0.0, kv_usage - 0.5)
            if score < best_score:
                best, best_score = rank, score
        self._sent_since[best] += 1
        if not self._by_queue:
            self._start = (self._start + 1) % len(replicas)
        return best

    def finished(self, replica: int, request: int = 0) -> None:
        pass
