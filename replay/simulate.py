"""``frontier replay``: a workload through a deployment in the simulator, as a bundle."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from replay.interrupt import on_interrupt
from replay.plan import ClusterPlan, Plan, load_step_time, make_plan
from replay.prepare import Prepared, prepare_colocated, prepare_disaggregated
from replay.progress import progress_of
from simulator.arrivals import Arrivals, ClosedLoop, OpenLoop
from simulator.records import RECORDABLE, Collected, Sink, Streamed
from simulator.step_time.base import StepTimeModel
from simulator.step_time.kept_spans import NEEDED, KeptSteps
from simulator.step_time.pipelined import PipelinedStepTime
from traces.bundle import (
    Bundle,
    Manifest,
    claim_directory,
    is_bundle,
    write_manifest,
    write_table,
)  # fmt: skip
from traces.errors import ConfigError, nearest
from traces.load import load_workload
from traces.metrics import column, request_metrics
from traces.workload import Workload, first_requests, scale_rate

SPANS = "spans"
FIRST_STEPS = 0, 9  # whose stages are recorded, unless others are named


def run_replay(
    workload_path: Path,
    deployment_path: Path,
    out: Path,
    *,
    operators: Path | None = None,
    rate_scale: float = 1.0,
    concurrency: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    record: str = "none",
    span_steps: tuple[int, int] = FIRST_STEPS,
) -> str:
    """The verb: read, simulate, write ``out``; returns a summary for the terminal.

    After Ctrl-C the bundle holds what was simulated up to there, and KeyboardInterrupt is
    raised again.
    """
    workload = load_workload(workload_path)
    if limit is not None:
        workload = first_requests(workload, limit)
    if rate_scale != 1.0:
        workload = scale_rate(workload, rate_scale)
    if not is_bundle(deployment_path) and deployment_path == workload_path:
        raise ConfigError(f"{workload_path}: not a bundle, so --deployment is needed")
    plan = make_plan(deployment_path, operators=operators)
    wanted = [] if record == "none" else record.split(",")

    @cache
    def folder() -> Path:
        return claim_directory(out)  # not before there is something to write

    sink = Streamed(folder)
    try:
        with progress_of(len(workload), "simulating") as advance:
            manifest, tables = replay(
                workload, plan, concurrency=concurrency, record=wanted, progress=advance,
                say=lambda text: print(text, file=sys.stderr), sink=sink, span_steps=span_steps,
            )  # fmt: skip
    except BaseException:
        sink.discard()
        raise
    sink.close()
    manifest.seed = seed
    manifest.command = ["frontier", "replay", workload_path.name]
    bundle = _write(folder(), plan, manifest, tables)
    if "interrupted" in manifest.notes:
        print(f"{manifest.notes['interrupted']}; kept in {out}", file=sys.stderr)
        raise KeyboardInterrupt
    return summary(bundle)


def replay(
    workload: Workload,
    plan: Plan,
    *,
    concurrency: int | None = None,
    record: Sequence[str] = (),
    progress: Callable[[int], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
    sink: Sink | None = None,
    step_time: tuple[StepTimeModel, dict[str, Any]] | None = None,
    span_steps: tuple[int, int] = FIRST_STEPS,
) -> tuple[Manifest, dict[str, pa.Table]]:
    """Simulate; returns the manifest and tables of the simulated bundle.

    What is recorded beside the requests goes to ``sink`` piece by piece, if one is given,
    and is not among the tables then. Ctrl-C ends the simulation; the manifest's notes say
    so. ``step_time``, a model and its note, stands in for the one the plan names. ``spans``
    are of the steps ``span_steps``, first and last, and always among the tables. Raises
    ConfigError or TraceError for what cannot be simulated.
    """
    known = (*RECORDABLE, SPANS)
    for name in record:
        if name not in known:
            raise ConfigError(f"--record: unknown {name!r}{nearest(name, known)}")
    collected = Collected()
    takes: Sink = sink or collected
    kept = _kept_steps(plan, record, takes, span_steps) if SPANS in record else None
    pipelined: list[StepTimeModel] = []
    make = prepare_colocated if len(plan.clusters) == 1 else prepare_disaggregated

    def models(part: ClusterPlan) -> tuple[StepTimeModel, dict[str, Any]]:
        found = step_time or load_step_time(plan, part, say)
        if part.cluster.role == "attention":
            pipelined.append(found[0])
        return found

    recorded = record if kept is None else NEEDED
    prepared = make(workload, plan, models, recorded, kept or takes, progress)
    simulation, demand = prepared.simulation, prepared.demand
    arrivals: Arrivals = OpenLoop(demand)
    if concurrency is not None:
        arrivals = ClosedLoop(demand, concurrency)
    with on_interrupt(simulation.stop):
        simulation.run(arrivals)
    tables = prepared.tables()
    manifest = _manifest(workload, plan, prepared)
    if simulation.stopped:
        manifest.notes["interrupted"] = (
            f"stopped after {simulation.finished} of {len(demand)} requests"
        )
    else:
        simulation.check()
    tables |= collected.tables()
    if kept is not None and isinstance(pipelined[0], PipelinedStepTime):
        ffn = [c.name for c in plan.deployment.clusters if c.role == "ffn"]
        tables[SPANS] = kept.spans(pipelined[0], ffn)
    return manifest, tables


def _kept_steps(
    plan: Plan, record: Sequence[str], sink: Sink, span_steps: tuple[int, int]
) -> KeptSteps:
    attention = [p.cluster.name for p in plan.clusters if p.cluster.role == "attention"]
    if not attention:
        raise ConfigError("--record: spans are the stages of attention and FFN clusters, which "
                          "this deployment has not")  # fmt: skip
    return KeptSteps(sink, [name for name in record if name != SPANS], attention[0], *span_steps)


def _write(folder: Path, plan: Plan, manifest: Manifest, tables: Mapping[str, pa.Table]) -> Bundle:
    """Write what is not in the folder yet; the manifest last, which makes it a bundle."""
    model = json.loads(plan.model_file.read_text())
    (folder / "model.json").write_text(json.dumps(model, indent=1, sort_keys=True) + "\n")
    manifest.deployment = {**manifest.deployment, "model": "model.json"}
    for name, table in tables.items():
        write_table(folder, name, table)
    write_manifest(folder, manifest)
    return Bundle(folder, manifest, dict(tables))


def _manifest(workload: Workload, plan: Plan, prepared: Prepared) -> Manifest:
    return Manifest(
        kind="simulated",
        vantage="engine",
        engine="vllm",
        engine_version=plan.engine_version,
        clock={"name": "simulated"},
        deployment=prepared.deployment.model_dump(mode="json", by_alias=True, exclude_none=True),
        hash_block_tokens=workload.hash_block_tokens,
        ignored=list(plan.ignored),
        notes={"workload": workload.source, **prepared.notes()},
    )


def summary(bundle: Bundle) -> str:
    """What happened, in three lines."""
    values = request_metrics(bundle)
    requests = bundle.requests
    ends = column(requests, "finished_s")
    ends = ends[np.isfinite(ends)]
    parts = []
    for name in ("ttft", "tpot", "e2e"):
        known = values[name][np.isfinite(values[name])]
        if len(known):
            p50, p99 = np.percentile(known, [50, 99])
            parts.append(
                f"{name.upper()} mean {known.mean() * 1e3:.2f} ms, p50 {p50 * 1e3:.2f}, "
                f"p99 {p99 * 1e3:.2f}"
            )
    steps = bundle.manifest.notes["step_time"]
    head = (
        f"{len(ends)} of {len(requests)} requests finished in {ends.max(initial=0):.1f} simulated "
        "seconds"
    )
    tail = f"{steps['extrapolated']:,} of {steps['steps']:,} steps outside the fitted range"
    if outside := steps.get("outside"):
        tail += f" ({', '.join(f'{layer} {n:,}' for layer, n in outside.items())})"
    if lost := bundle.manifest.notes.get("lost_leases"):
        head += f"; {lost} requests lost their lease: their KV was freed before it had been taken"
    return "\n".join([head, *parts, tail, *(f"ignored: {i}" for i in bundle.manifest.ignored)])
