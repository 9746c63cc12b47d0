"""Step times that are partly recorded and partly predicted."""

from __future__ import annotations

from bisect import bisect_left

from simulator.step_time.base import StepTimes
from validation.predicting import Predictor, Shapes, most_tokens
from validation.recorded_steps import Record


class MixedClock:
    """Step times of a record, of which the ``predicted`` parts are the model's.

    A step whose batch is not the recorded one has the model's time for its shape, times how
    far the model was off in the recorded step nearest in number among those of like size
    (tokens within a factor of two): what the machine did then, to such a batch.
    """

    def __init__(self, record: Record, model: Predictor, predicted: frozenset[str]) -> None:
        self._record = record
        self._model = model
        self._measured = {p: v.tolist() for p, v in record.parts.items() if p not in predicted}
        times = [model.times(n, shapes)._asdict() for n, shapes in enumerate(record.shapes)]
        self._off = {p: _ratios(v, [t[p] for t in times]) for p, v in self._measured.items()}
        self._like: dict[int, list[int]] = {}  # size -> numbers of the steps of that size
        for n, shapes in enumerate(record.shapes):
            self._like.setdefault(_size(shapes), []).append(n)

    def times(self, step: int, shapes: Shapes, *, halved: bool = False) -> StepTimes:
        found = self._model.times(step, shapes, halved=halved)._asdict()
        if not self._measured:
            return StepTimes(**found)
        if step < len(self._record) and shapes == self._record.shapes[step]:
            for part, values in self._measured.items():
                unseen = min(found[part], int(self._record.idle[step]))
                found[part] = values[step] if values[step] >= 0 else unseen
            return StepTimes(**found)
        nearest = self._nearest(step, shapes)
        for part, ratios in self._off.items():
            if nearest is None or (measured := self._measured[part][nearest]) < 0:
                found[part] = round(found[part] * self._overall(part))
            elif (ratio := ratios[nearest]) is not None:
                found[part] = round(found[part] * ratio)
            else:  # the model has no such time: what it took is all there is
                found[part] = measured
        return StepTimes(**found)

    def _nearest(self, step: int, shapes: Shapes) -> int | None:
        """The recorded step of like size nearest in number to ``step``."""
        steps = self._like.get(_size(shapes))
        if not steps:
            return None
        after = bisect_left(steps, step)
        return min(steps[max(after - 1, 0) : after + 1], key=lambda n: (abs(n - step), n))

    def _overall(self, part: str) -> float:
        """How far the model is off in all."""
        known = [r for r in self._off[part] if r is not None]
        return sum(known) / len(known) if known else 1.0


def _size(shapes: Shapes) -> int:
    return most_tokens(shapes).bit_length()


def _ratios(measured: list[int], modelled: list[int]) -> list[float | None]:
    """Measured over modelled, None where either is unknown."""
    pairs = zip(measured, modelled, strict=True)
    return [a / b if a >= 0 and b > 0 else None for a, b in pairs]
