"""What a pipelining strategy decides: which resource runs a stage, and in which order.

A step is cut into micro-batches. In each layer a micro-batch passes the stages::

    attention -> a2f -> ffn -> f2a -> attention of the next layer
            \\_______ shared _______/

``a2f`` and ``f2a`` carry activations from the attention to the FFN ranks and back; ``shared``
is an always-on expert that runs beside them, where a strategy says so. After the last layer a
micro-batch passes attention once more, for what closes the step (lm_head, sampling). A
resource does one thing at a time, in the strategy's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, Protocol

Stage = Literal["attention", "a2f", "ffn", "f2a", "shared"]
STAGES: tuple[Stage, ...] = ("attention", "a2f", "ffn", "f2a", "shared")

# resources: an attention rank, an FFN rank, a link in one direction or shared by both, and
# the device where attention and FFN are the same one
ATTENTION, FFN, A2F, F2A, NETWORK, DEVICE = "attention", "ffn", "a2f", "f2a", "network", "device"
DUPLEX: Mapping[Stage, str] = {
    "attention": ATTENTION, "a2f": A2F, "ffn": FFN, "f2a": F2A, "shared": ATTENTION,
}  # fmt: skip
ONE_NETWORK: Mapping[Stage, str] = {**DUPLEX, "a2f": NETWORK, "f2a": NETWORK}


class Work(NamedTuple):
    """One stage of one micro-batch in one layer; ``layer`` is the number of layers to close."""

    stage: Stage
    layer: int
    micro_batch: int


class Strategy(Protocol):
    """How the micro-batches of a step share the resources."""

    name: str
    resources: Mapping[Stage, str]
    shared: bool  # the always-on expert is a stage of its own

    def cut(self, wanted: int) -> int:
        """Micro-batches this strategy makes where ``wanted`` were asked for."""

    def order(self, layers: int, micro_batches: int) -> Iterator[Work]:
        """All work of a step, each piece after what it needs.

        Every resource works off its share in this order, whether or not a later piece is
        ready sooner: the order is the program's, not the scheduler's.
        """


def stage_by_stage(layers: int, micro_batches: int, *, shared: bool = False) -> Iterator[Work]:
    """Layer by layer and stage by stage, the micro-batches in turn; then what closes them."""
    for layer in range(layers):
        for stage in STAGES[:4]:
            for micro_batch in range(micro_batches):
                yield Work(stage, layer, micro_batch)
                if shared and stage == "attention":
                    yield Work("shared", layer, micro_batch)
    yield from closing(layers, micro_batches)


def closing(layers: int, micro_batches: int) -> Iterator[Work]:
    """What each micro-batch runs after the last layer."""
    for micro_batch in range(micro_batches):
        yield Work("attention", layers, micro_batch)
