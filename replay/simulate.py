"""``frontier replay``: a workload through a deployment in the simulator, as a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from replay.plan import Plan, load_step_time, make_plan
from replay.progress import progress_of
from simulator.arrivals import Arrivals, ClosedLoop, OpenLoop
from simulator.demand import Demand
from simulator.records import RECORDABLE, Recorder, requests_table
from simulator.scheduling.fast import FastScheduler
from simulator.simulation import Simulation
from simulator.step_time.base import StepTimeModel
from traces.bundle import Bundle, Manifest, is_bundle, write_bundle
from traces.errors import ConfigError, nearest
from traces.metrics import request_metrics
from traces.workload import Workload, first_requests, load_workload, scale_rate


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
    record: str = "steps",
) -> str:
    """The verb: read, simulate, write ``out``; returns a summary for the terminal."""
    workload = load_workload(workload_path)
    if limit is not None:
        workload = first_requests(workload, limit)
    if rate_scale != 1.0:
        workload = scale_rate(workload, rate_scale)
    if not is_bundle(deployment_path) and deployment_path == workload_path:
        raise ConfigError(f"{workload_path}: not a bundle, so --deployment is needed")
    plan = make_plan(deployment_path, operators=operators)
    wanted = [] if record == "none" else record.split(",")
    with progress_of(len(workload.requests), "simulating") as advance:
        manifest, tables = replay(
            workload, plan, concurrency=concurrency, record=wanted, progress=advance
        )
    manifest.seed = seed
    manifest.command = ["frontier", "replay", workload_path.name]
    bundle = write_bundle(
        out, manifest, tables, model_config=json.loads(plan.model_file.read_text())
    )
    return summary(bundle)


def replay(
    workload: Workload,
    plan: Plan,
    *,
    concurrency: int | None = None,
    record: Sequence[str] = ("steps",),
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, dict[str, pa.Table]]:
    """Simulate; returns the manifest and tables of the simulated bundle.

    Raises ConfigError or TraceError for what cannot be simulated.
    """
    for name in record:
        if name not in RECORDABLE:
            raise ConfigError(f"--record: unknown {name!r}{nearest(name, RECORDABLE)}")
    config = plan.scheduler_config()
    model, operators = load_step_time(plan)
    demand = Demand(workload.requests, config, workload.hash_block_tokens)
    recorder = Recorder(record, plan.cluster.name, demand)
    simulation = Simulation(
        demand,
        plan.deployment.routing.policy,
        plan.schedulers,
        lambda: FastScheduler(config, explicit="step_requests" in record),
        model,
        on_step=recorder.on_step if record else None,
        progress=progress,
    )
    arrivals: Arrivals = OpenLoop(demand)
    if concurrency is not None:
        arrivals = ClosedLoop(demand, concurrency)
    simulation.run(arrivals)
    for replica in simulation.replicas:
        replica.scheduler.check([])
    tables = {"requests": requests_table(demand, plan.cluster.name), **recorder.tables()}
    return _manifest(workload, plan, operators, model), tables


def _manifest(
    workload: Workload, plan: Plan, operators: dict[str, Any], model: StepTimeModel
) -> Manifest:
    return Manifest(
        kind="simulated",
        vantage="engine",
        engine="vllm",
        engine_version=plan.engine_version,
        clock={"name": "simulated"},
        deployment=plan.deployment.model_dump(mode="json", by_alias=True, exclude_none=True),
        hash_block_tokens=workload.hash_block_tokens,
        ignored=list(plan.ignored),
        notes={
            "workload": workload.source,
            "operators": operators,
            "step_time": model.coverage(),
            "kv_capacity": plan.capacity.source,
        },
    )


def summary(bundle: Bundle) -> str:
    """What happened, in three lines."""
    values = request_metrics(bundle)
    requests = bundle.requests
    status = requests.column("status").to_pylist()
    finished = status.count("finished")
    end = max((t for t in requests.column("finished_s").to_pylist() if t is not None), default=0.0)
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
    head = f"{finished} of {len(status)} requests finished in {end:.1f} simulated seconds"
    tail = f"{steps['extrapolated']} of {steps['steps']} steps outside the fitted range"
    return "\n".join([head, *parts, tail, *(f"ignored: {i}" for i in bundle.manifest.ignored)])
