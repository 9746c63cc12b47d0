"""Predicted runs of the testbed as bundles, to be looked at beside the measured ones.

Every decode step takes what was predicted for it. Prompts are not: their step is as it was
measured, and has no stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from simulator.clock import PS_PER_S
from simulator.step_time.spans import COLUMNS, span_rows
from traces.bundle import Manifest, read_bundle, write_bundle
from traces.metrics import column
from traces.schema import SPANS
from validation.pipelined import (
    Costs,
    MeasuredRun,
    evaluate,
    predicted_durations,
    stage_costs,
)


def write_predicted(runs: Sequence[MeasuredRun], root: Path, out: Path) -> int:
    """Write ``out/<path below root>`` for every run that can be predicted; returns how many.

    Stage times are means over undisturbed steps. Raises TraceError.
    """
    costs = stage_costs(runs, filtered=True)
    return sum(_write(run, costs, out / run.path.relative_to(root)) for run in runs)


def _write(run: MeasuredRun, costs: Costs, out: Path) -> bool:
    durations = predicted_durations(run, costs)
    if durations is None:
        return False
    measured, pipeline = read_bundle(run.path), run.pipeline()
    step_s = evaluate(pipeline, durations) / PS_PER_S
    steps, requests = measured.table("steps"), measured.requests
    decodes = column(steps, "prefill_tokens") == 0
    took = np.where(decodes, step_s, column(steps, "forward_s"))
    ends = took.cumsum()
    for name, values in (("start_s", ends - took), ("end_s", ends), ("forward_s", took)):
        steps = steps.set_column(steps.column_names.index(name), name, pa.array(values))
    place = requests.column_names.index("finished_s")
    finished = pa.array(np.full(len(requests), ends[-1]))
    requests = requests.set_column(place, "finished_s", finished)
    ranks = [("ffn", rank) for rank in range(run.lanes.ffn)]
    rows = [
        row
        for step in np.flatnonzero(decodes).tolist()
        for row in span_rows(
            pipeline, 0, step, round((ends[step] - took[step]) * PS_PER_S), "attention", ranks
        )
    ]
    manifest = Manifest(
        kind="simulated",
        engine=measured.manifest.engine,
        engine_version=measured.manifest.engine_version,
        clock={"name": "simulated"},
        deployment=measured.manifest.deployment,
        ignored=["prompts: their step is as it was measured"],
    )
    tables = {
        "requests": requests,
        "steps": steps,
        "spans": pa.Table.from_pylist(rows, SPANS.arrow_schema(COLUMNS)),
    }
    write_bundle(out, manifest, tables, model_config=measured.model_config())
    return True
