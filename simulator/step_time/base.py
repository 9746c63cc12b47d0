"""The boundary between scheduling and time: a batch's shape in, picoseconds out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from simulator.scheduling.reference import Batch


@dataclass(slots=True)
class BatchShape:
    """What a step's duration depends on: integers that do not depend on the order of rows.

    A row runs ``q`` query tokens after ``c`` computed ones. Rows with q = 1 are decodes to
    the kernels, whatever their request is doing.
    """

    tokens: int = 0  # sum of q
    rows: int = 0
    sampled: int = 0  # rows that sample a token
    decodes: int = 0  # rows with q = 1
    decode_context: int = 0  # their sum of c
    prefill_tokens: int = 0  # sum of q over rows with q > 1
    prefill_context: int = 0  # their sum of c: KV read back
    prefill_pairs: int = 0  # their sum of q c + q (q + 1) / 2: query-key pairs


def shape_of(batch: Batch) -> BatchShape:
    """Shape of a batch, O(rows listed)."""
    shape = BatchShape(
        tokens=batch.tokens, rows=len(batch.rows) + batch.decodes, sampled=batch.decodes,
        decodes=batch.decodes, decode_context=batch.context if batch.decodes else 0,
    )  # fmt: skip
    for row in batch.rows:
        shape.sampled += row.emits
        if row.tokens == 1:
            shape.decodes += 1
            shape.decode_context += row.computed
        else:
            shape.prefill_tokens += row.tokens
            shape.prefill_context += row.computed
            shape.prefill_pairs += row.tokens * row.computed + row.tokens * (row.tokens + 1) // 2
    return shape


class StepTimes(NamedTuple):
    """Parts of one step, picoseconds.

    Synchronously a step lasts ``host + forward`` and the next begins ``gap`` later;
    asynchronously the host works on the next step while the device runs this one.
    """

    forward: int
    host: int
    gap: int


class StepTimeModel(Protocol):
    """Predicts a step from its shape."""

    frontend_ps: int  # from a request's arrival to the engine's input queue

    def times(self, shape: BatchShape) -> StepTimes:
        """Times of a step of this shape; counts look-ups outside the fitted range."""

    def coverage(self) -> dict[str, int]:
        """How many steps were asked for and how many lay outside the range."""
