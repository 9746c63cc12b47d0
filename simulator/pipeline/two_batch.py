"""Two-batch overlap: one half of the batch computes while the other communicates.

As vLLM's dual-batch overlap (``v1/worker/ubatching.py``): two halves, one stream for
computation and one for communication, which dispatch and combine share.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.pipeline.base import ONE_NETWORK, Work, stage_by_stage


class TwoBatch:
    """Two micro-batches, whatever was asked for."""

    name = "two_batch"
    resources = ONE_NETWORK
    shared = False

    def cut(self, wanted: int) -> int:
        return 2

    def order(self, layers: int, micro_batches: int) -> Iterator[Work]:
        return stage_by_stage(layers, micro_batches)
