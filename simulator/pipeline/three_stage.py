"""Three stages (attention, transfer, FFN), three micro-batches: each stage has one at work.

As Step-3's attention-FFN disaggregation (arXiv 2507.19427): the transfer is one
stage that sends a micro-batch to the FFN and then brings the one before it back. With equal
times of the three stages none of them ever waits.
"""

from __future__ import annotations

from collections.abc import Iterator

from simulator.pipeline.base import ONE_NETWORK, Work, closing, stage_by_stage


class ThreeStage:
    """At least three micro-batches; fewer, where the requests are fewer, take turns."""

    name = "three_stage"
    resources = ONE_NETWORK
    shared = False

    def cut(self, wanted: int) -> int:
        return max(3, wanted)

    def order(self, layers: int, micro_batches: int) -> Iterator[Work]:
        if micro_batches < 3:
            yield from stage_by_stage(layers, micro_batches)
            return
        turns = layers * micro_batches
        for turn in range(turns + 1):
            layer, micro_batch = divmod(turn, micro_batches)
            if turn < turns:
                yield Work("attention", layer, micro_batch)
                yield Work("a2f", layer, micro_batch)
                yield Work("ffn", layer, micro_batch)
            if turn:
                yield Work("f2a", *divmod(turn - 1, micro_batches))
        yield from closing(layers, micro_batches)
