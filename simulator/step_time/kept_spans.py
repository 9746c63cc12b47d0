"""The stages of chosen steps of a simulated attention/FFN deployment.

Batches of these steps are kept as they are recorded; their stages are those of the model at
the same shapes, on the attention rank that takes longest: the others wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulator.clock import PS_PER_S
from simulator.records import Sink
from simulator.step_time.pipelined import PipelinedStepTime
from simulator.step_time.spans import StepAt, spans_table

NEEDED = ("steps", "step_requests")


class KeptSteps:
    """A sink that hands pieces on to ``sink`` if ``asked`` for, and keeps steps ``first`` to
    ``last`` of the ``attention`` cluster."""

    def __init__(
        self, sink: Sink, asked: Sequence[str], attention: str, first: int, last: int
    ) -> None:
        self._sink, self._asked = sink, asked
        self._attention, self._first, self._last = attention, first, last
        self._pieces: dict[str, list[pa.Table]] = {name: [] for name in NEEDED}

    def __call__(self, name: str, piece: pa.Table) -> None:
        if name in self._asked:
            self._sink(name, piece)
        if name in NEEDED:
            step = piece.column("step")
            chosen = pc.and_(
                pc.equal(piece.column("cluster"), self._attention),
                pc.and_(
                    pc.greater_equal(step, self._first), pc.less_equal(step, self._last)
                ),
            )  # fmt: skip
            self._pieces[name].append(piece.filter(chosen))

    def spans(self, model: PipelinedStepTime, ffn: Sequence[str]) -> pa.Table:
        """The ``spans`` table of the steps kept; ``ffn`` are the clusters, in their order."""
        if not all(self._pieces.values()):
            return spans_table(model, [], self._attention, ffn)
        steps, rows = (pa.concat_tables(self._pieces[name]) for name in NEEDED)
        found = []
        for number in np.unique(steps.column("step").to_numpy()).tolist():
            mine = pc.equal(steps.column("step"), number)
            found.append(
                _slowest(model, number, steps.filter(mine), rows.filter(
                    pc.equal(rows.column("step"), number)
                ))
            )  # fmt: skip
        return spans_table(model, found, self._attention, ffn)


def _slowest(model: PipelinedStepTime, number: int, steps: pa.Table, rows: pa.Table) -> StepAt:
    """A step on the rank whose batch takes longest."""
    from simulator.lockstep import dummy_shape
    from simulator.step_time.samples import shapes_of

    replicas = steps.column("replica").to_numpy()
    place = np.searchsorted(np.sort(replicas), rows.column("replica").to_numpy())
    shapes = shapes_of(rows, place, len(replicas))
    shapes = [shape if shape.tokens else dummy_shape() for shape in shapes]
    for shape in shapes:
        shape.engine_tokens = sum(s.tokens for s in shapes)
        shape.most_tokens = max(s.tokens for s in shapes)
        shape.engine_prefill = sum(s.prefill_tokens for s in shapes)
        shape.most_rows = max(s.rows for s in shapes)
        shape.draw = number
    took = [model.times(shape).forward for shape in shapes]
    slowest = int(np.argmax(took))
    end_ps = round(steps.column("end_s")[0].as_py() * PS_PER_S)
    replica = int(np.sort(replicas)[slowest])
    return StepAt(replica, number, end_ps - took[slowest], shapes[slowest])
