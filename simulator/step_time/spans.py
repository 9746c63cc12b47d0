"""The stages of simulated pipelined steps as rows of a bundle's ``spans`` table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from simulator.clock import to_s
from simulator.pipeline import Pipeline
from simulator.step_time.base import BatchShape
from simulator.step_time.pipelined import PipelinedStepTime
from traces.schema import SPANS

OF_FFN = ("ffn", "f2a")
COLUMNS = ["cluster", "replica", "rank", "step", "layer", "micro_batch", "stage", "start_s",
           "end_s"]  # fmt: skip


class StepAt(NamedTuple):
    """A step as it was simulated: which, when its forward began, and its batch."""

    replica: int
    step: int
    start_ps: int
    shape: BatchShape


def spans_table(
    model: PipelinedStepTime, steps: Iterable[StepAt], attention: str, ffn: Sequence[str]
) -> pa.Table:
    """The spans of ``steps``; ``attention`` and ``ffn`` name the clusters, of each FFN lane one.

    An FFN cluster's stages are those of its slowest rank, 0.
    """
    rows: list[dict[str, Any]] = []
    for at in steps:
        forward_ps = model.times(at.shape).forward
        pipeline = model.pipeline_of(at.shape)
        before_ps = forward_ps - pipeline.evaluate()  # what runs outside the pipeline
        ranks = [(name, 0) for name in ffn]
        rows += span_rows(pipeline, at.replica, at.step, at.start_ps + before_ps, attention, ranks)
    return pa.Table.from_pylist(rows, SPANS.arrow_schema(COLUMNS))


def span_rows(
    pipeline: Pipeline, replica: int, step: int, zero_ps: int, attention: str,
    ffn: Sequence[tuple[str, int]],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of one step, for the pipeline as evaluated last; it began at ``zero_ps``.

    ``ffn`` gives each lane's cluster and rank; ``rank`` of an ``a2f`` row is the receiver's.
    """
    rows = []
    for span in pipeline.spans():
        stage, layer, micro_batch = span.work
        cluster, rank = ffn[span.lane] if stage in OF_FFN else (attention, span.lane)
        row = (
            cluster, replica, ffn[span.lane][1] if stage == "a2f" else rank, step,
            layer if layer < pipeline.layers else None, micro_batch, stage,
            to_s(zero_ps + span.start_ps), to_s(zero_ps + span.arrived_ps),
        )  # fmt: skip
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return rows
