"""Step times predicted for the steps of one engine, whose ranks may step together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.step_time.base import BatchShape, StepTimeModel, StepTimes, draw_of

Shapes = tuple[BatchShape, ...]  # of one step, a rank each


class Predictor:
    """A model's times of an engine's steps; ``replica`` is the engine's first rank."""

    def __init__(self, model: StepTimeModel, replica: int = 0) -> None:
        self._model = model
        self._replica = replica

    def times(self, step: int, shapes: Shapes, *, halved: bool = False) -> StepTimes:
        """Times of step number ``step``: each part is the slowest rank's."""
        tokens = [shape.tokens for shape in shapes]
        prefill = sum(shape.prefill_tokens for shape in shapes)
        found = [
            self._model.times(
                replace(
                    shape, engine_tokens=sum(tokens), engine_prefill=prefill,
                    most_tokens=max(tokens), draw=draw_of(self._replica, step), halved=halved,
                )
            ).in_one_stage()
            for shape in shapes
        ]  # fmt: skip
        return found[0] if len(found) == 1 else StepTimes(*map(max, zip(*found, strict=True)))


def most_tokens(shapes: Shapes) -> int:
    """Tokens of the fullest rank."""
    return max(shape.tokens for shape in shapes)


def has_prefill(shapes: Sequence[BatchShape]) -> bool:
    """Whether a rank runs more than decodes."""
    return any(shape.prefill_tokens for shape in shapes)
