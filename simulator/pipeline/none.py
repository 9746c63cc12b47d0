"""No overlap: the whole batch passes stage after stage."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.pipeline.base import DUPLEX, Work, stage_by_stage


class NoPipeline:
    """One micro-batch, whatever was asked for; the step is the sum of its stages."""

    name = "none"
    resources = DUPLEX
    shared = False

    def cut(self, wanted: int) -> int:
        return 1

    def order(self, layers: int, micro_batches: int) -> Iterator[Work]:
        return stage_by_stage(layers, micro_batches)
