"""The boundary between scheduling and time: a batch's shape in, picoseconds out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from simulator.engine.layout import DRAWS_APART
from simulator.scheduling.reference import Batch


@dataclass(slots=True)
class BatchShape:
    """What a step's duration depends on: integers that do not depend on the order of rows.

    A row runs ``q`` query tokens after ``c`` computed ones. Rows with q = 1 are decodes to
    the kernels, whatever their request is doing; those with q > 1 are prefills. All but
    ``sampled`` follow from sums and maxima over rows, and a step of nothing but decodes
    changes them by what can be said without looking at its rows.
    """

    tokens: int = 0  # sum of q
    rows: int = 0
    sampled: int = 0  # rows that sample a token
    decodes: int = 0  # rows with q = 1
    decode_context: int = 0  # their sum of c
    decode_context_sq: int = 0  # of c squared
    decode_context_max: int = 0
    prefill_tokens: int = 0  # sum of q over rows with q > 1
    prefill_tokens_sq: int = 0  # of q squared
    prefill_context: int = 0  # their sum of c: KV read back
    prefill_context_sq: int = 0
    prefill_context_max: int = 0
    prefill_pairs: int = 0  # their sum of q c + q (q + 1) / 2: query-key pairs
    engine_tokens: int = 0  # tokens of all ranks that step together, this one among them
    engine_prefill: int = 0  # of these, tokens of rows with q > 1
    most_tokens: int = 0  # of these ranks, the most tokens on one
    most_rows: int = 0  # and the most rows
    draw: int = 0  # which of the drawn expert loads the step gets
    halved: int = 0  # dual-batch overlap: all ranks run two halves of the batch

    @property
    def prefill_rows(self) -> int:
        """Rows with q > 1."""
        return self.rows - self.decodes

    def of_rows(self) -> BatchShape:
        """What follows from the rows; what depends on other ranks, or on the step, is 0."""
        return replace(
            self, engine_tokens=0, engine_prefill=0, most_tokens=0, most_rows=0, draw=0, halved=0
        )


def draw_of(replica: int, steps: int) -> int:
    """``BatchShape.draw`` of a replica's step after so many; replicas begin far apart."""
    return replica * DRAWS_APART + steps


def shape_of(batch: Batch) -> BatchShape:
    """Shape of a batch, O(rows); what depends on other ranks, or on the step, is left 0."""
    shape = BatchShape(tokens=batch.tokens, rows=len(batch.rows))
    for row in batch.rows:
        q, c = row.tokens, row.computed
        shape.sampled += row.emits
        if q == 1:
            shape.decodes += 1
            shape.decode_context += c
            shape.decode_context_sq += c * c
            shape.decode_context_max = max(shape.decode_context_max, c)
        else:
            shape.prefill_tokens += q
            shape.prefill_tokens_sq += q * q
            shape.prefill_context += c
            shape.prefill_context_sq += c * c
            shape.prefill_context_max = max(shape.prefill_context_max, c)
            shape.prefill_pairs += q * c + q * (q + 1) // 2
    return shape


class StepTimes(NamedTuple):
    """Parts of one step, picoseconds.

    Synchronously a step lasts ``host + forward + head`` and the next begins ``gap`` later;
    asynchronously the host works on the next step while the device runs this one. ``forward``
    are the layers, ``head`` what follows the last; between the stages of a pipeline lies a
    ``hop``.
    """

    forward: int
    host: int
    gap: int
    head: int = 0
    hop: int = 0

    @property
    def alone(self) -> int:
        """The device's time in one stage."""
        return self.forward + self.head

    def in_one_stage(self) -> StepTimes:
        """The same step, its head told as part of ``forward``, as captures record it."""
        return StepTimes(self.alone, self.host, self.gap)


class StepTimeModel(Protocol):
    """Predicts a step from its shape.

    A model that the compiled engine is to use is a ``step_time.compiled.CompiledStepTime``.
    """

    frontend_ps: int  # from a request's arrival to the engine's input queue

    def times(self, shape: BatchShape) -> StepTimes:
        """Times of a step of this shape; counts look-ups outside the fitted range."""

    def coverage(self) -> dict[str, int]:
        """How many steps were asked for and how many lay outside the range."""
