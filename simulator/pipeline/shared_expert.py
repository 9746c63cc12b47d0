"""Shared-expert overlap: attention's rank runs the always-on expert while tokens travel.

The routed experts' dispatch, computation and combine pass beside it; the next layer's
attention needs both.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.pipeline.base import DUPLEX, Work, stage_by_stage


class SharedExpert:
    """Any number of micro-batches, in ping-pong; the shared expert follows attention at once."""

    name = "shared_expert"
    resources = DUPLEX
    shared = True

    def cut(self, wanted: int) -> int:
        return wanted

    def order(self, layers: int, micro_batches: int) -> Iterator[Work]:
        return stage_by_stage(layers, micro_batches, shared=True)
