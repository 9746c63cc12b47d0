"""The step time of a pipelined deployment: its stages priced by micro-batch, then overlapped.

    forward = what is outside the pipeline + the end of the last stage

Stages are sums of functions of a micro-batch's shape, as whole steps are (functions.py). A
step is cut evenly: micro-batch b of m gets ``n (b + 1) // m - n b // m`` of n rows, tokens,
context and so on, as if contexts were spread evenly over them; maxima stay, and each gets the
next draw of expert loads. There are never more micro-batches than rows on the fullest of the
ranks that step together. With ``least`` < ``most`` the number that takes least is chosen at
every step. The slowest rank sets the time of all, which is exact where one has most of
everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.engine import times
from simulator.engine.layout import StagePrice as Record
from simulator.pipeline import STAGES, Pipeline, Stage
from simulator.step_time.base import BatchShape
from simulator.step_time.compiled import FEATURES, CompiledStepTime, Sum


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of a stage in a layer of ``kind``, on every lane or on one.

    With ``beside`` the stage lasts as long as this or as the costs given for it before,
    whichever is longer. ``ranges``: see ``CompiledStepTime``, of a micro-batch.
    """

    stage: Stage
    kind: int
    seconds: Sum
    lane: int | None = None
    beside: bool = False
    ranges: Mapping[str, int] | None = None


class PipelinedStepTime(CompiledStepTime):
    """``pipelines`` has one for each number of micro-batches from 1 up; see the module."""

    def __init__(
        self,
        costs: Sequence[StageCost],
        pipelines: Sequence[Pipeline],
        *,
        least: int,
        outside: Sum = (),
        host: Sum = (),
        gap: Sum = (),
        frontend_ps: int = 0,
        ranges: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(outside, host, gap, frontend_ps=frontend_ps, ranges=ranges)
        self.pipelines = tuple(pipelines)
        lanes = self.pipelines[0].lanes
        self._priced: list[CompiledStepTime] = []  # kept alive: compiled code has addresses
        stages: list[tuple[int, int, int, int, int]] = []
        for cost in costs:
            model = CompiledStepTime(cost.seconds, ranges=cost.ranges)
            self._priced.append(model)
            every = range(lanes.of(cost.stage)) if cost.lane is None else [cost.lane]
            stage = STAGES.index(cost.stage)
            stages += [(model.address, stage, cost.kind, i, cost.beside) for i in every]
        self._stages = np.array(stages, Record.dtype)
        self._addresses = np.array([p.address for p in self.pipelines], np.int64)
        self._cut = np.array([_cut(name) for name in FEATURES], np.int64)
        for key, array in (
            ("stages_at", self._stages), ("pipelines_at", self._addresses), ("cut_at", self._cut)
        ):  # fmt: skip
            self._model[key] = array.ctypes.data
        self._model["stages"] = len(stages)
        self._model["least"], self._model["most"] = least, len(self.pipelines)

    def hold(self, micro_batches: int) -> None:
        """Cut every step into so many micro-batches from now on, as far as it has rows."""
        self._model["least"] = self._model["most"] = micro_batches

    def pipeline_of(self, shape: BatchShape) -> Pipeline:
        """The pipeline of a step of this shape, evaluated."""
        self.times(shape)
        pipeline = self.pipelines[int(self._model["micro_batches"][0]) - 1]
        pipeline.evaluate()  # its costs are still those of this shape
        return pipeline


def _cut(feature: str) -> int:
    """What a micro-batch gets of a feature of its step."""
    if feature == "draw":
        return times.COUNTED_ON
    whole = feature.endswith("_max") or feature in ("halved", "most_rows")
    return times.WHOLE if whole else times.SHARED_OUT
