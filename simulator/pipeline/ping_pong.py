"""Ping-pong: while the FFN works on one micro-batch, attention works on the next.

With m micro-batches and constant stage times a (attention), x (a2f), f (ffn), y (f2a) over L
layers, sum s = a + x + f + y and bottleneck b = max(a, x, f, y)::

    L s + (m - 1) b        while m b <= s: the other micro-batches fit into the waiting
    L m b + s - b          beyond: the bottleneck never waits

MegaScale-Infer (arXiv 2504.02263) gives the second, for b = max(a, f) = a = f and x = y, and
asks for m >= 2 (1 + x / b).
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.pipeline.base import DUPLEX, Work, stage_by_stage


class PingPong:
    """Any number of micro-batches; a link carries both directions at once."""

    name = "ping_pong"
    resources = DUPLEX
    shared = False

    def cut(self, wanted: int) -> int:
        return wanted

    def order(self, layers: int, micro_batches: int) -> Iterator[Work]:
        return stage_by_stage(layers, micro_batches)
