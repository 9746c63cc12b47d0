"""The step time of a pipelined deployment: its stages priced by micro-batch, then overlapped.

    forward = what is outside the pipeline + the end of the last stage

Stages are sums of functions of a micro-batch's shape, as whole steps are (functions.py). A
step is cut evenly: micro-batch b of m gets ``n (b + 1) // m - n b // m`` of n rows, tokens,
context and so on, as if contexts were spread evenly over them; maxima stay. There are never
more micro-batches than rows. With ``least`` < ``most`` the number that takes least is chosen
at every step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.engine.layout import StagePrice as Record
from simulator.pipeline import STAGES, Pipeline, Stage
from simulator.step_time.base import BatchShape
from simulator.step_time.compiled import FEATURES, CompiledStepTime, Sum


@dataclass(frozen=True, slots=True)
class StageCost:
    """Seconds of a stage in a layer of ``kind``, on every lane or on one."""

    stage: Stage
    kind: int
    seconds: Sum
    lane: int | None = None


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
        stages: list[tuple[int, int, int, int]] = []
        for cost in costs:
            model = CompiledStepTime(cost.seconds)
            self._priced.append(model)
            every = range(lanes.of(cost.stage)) if cost.lane is None else [cost.lane]
            stages += [(model.address, STAGES.index(cost.stage), cost.kind, i) for i in every]
        self._stages = np.array(stages, Record.dtype)
        self._addresses = np.array([p.address for p in self.pipelines], np.int64)
        whole = [not name.endswith("_max") for name in FEATURES]
        self._cut = np.array(whole, np.int64)
        for key, array in (
            ("stages_at", self._stages), ("pipelines_at", self._addresses), ("cut_at", self._cut)
        ):  # fmt: skip
            self._model[key] = array.ctypes.data
        self._model["stages"] = len(stages)
        self._model["least"], self._model["most"] = least, len(self.pipelines)

    def pipeline_of(self, shape: BatchShape) -> Pipeline:
        """The pipeline of a step of this shape, evaluated."""
        self.times(shape)
        pipeline = self.pipelines[int(self._model["micro_batches"][0]) - 1]
        pipeline.evaluate()  # its costs are still those of this shape
        return pipeline
