"""``frontier replay``: a workload through a deployment in the simulator, as a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from replay.progress import progress_of
from simulator.arrivals import Arrivals, ClosedLoop, OpenLoop
from simulator.clock import to_ps
from simulator.deployment import (
    Cluster,
    Deployment,
    check_layout,
    find_file,
    load_deployment,
    parse_deployment,
)
from simulator.memory import KVCapacity, kv_capacity
from simulator.model import ModelSpec, load_model
from simulator.records import RECORDABLE, Recorder, requests_table
from simulator.routing import create_router
from simulator.scheduling import Request, SchedulerConfig, create_policy
from simulator.scheduling.reference import Scheduler
from simulator.simulation import Simulation
from simulator.step_time.base import StepTimeModel
from simulator.step_time.fitted import FittedStepTime, load_profile
from traces.bundle import Bundle, Manifest, content_hash, is_bundle, read_bundle, write_bundle
from traces.errors import ConfigError, nearest
from traces.metrics import request_metrics
from traces.workload import Workload, first_requests, load_workload, scale_rate

ENGINE_VERSIONS = ("0.32.0",)


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


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment resolved for simulation: files read, layout checked, KV sized."""

    deployment: Deployment
    home: Path
    model_file: Path
    model: ModelSpec
    cluster: Cluster
    capacity: KVCapacity
    engine_version: str
    ignored: tuple[str, ...] = ()

    def scheduler_config(self) -> SchedulerConfig:
        """The scheduler's settings of the cluster's engines."""
        engine = self.cluster.engine
        names = (
            "block_size", "max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill",
            "enable_prefix_caching", "long_prefill_token_threshold",
            "long_prefill_token_threshold_adaptive", "scheduling_policy", "async_scheduling",
            "scheduler_reserve_full_isl", "watermark",
        )  # fmt: skip
        return SchedulerConfig(
            num_gpu_blocks=self.capacity.blocks,
            max_model_len=engine.max_model_len or self.model.max_len,
            windows=self.model.kv_windows(),
            **{name: getattr(engine, name) for name in names},
        )


def make_plan(path: Path, *, operators: Path | None = None) -> Plan:
    """Read a deployment file, or a bundle's own deployment. Raises ConfigError, TraceError."""
    ignored: list[str] = []
    version: str | None = None
    if is_bundle(path):
        manifest = read_bundle(path, eager=False).manifest
        deployment = parse_deployment(manifest.deployment, f"{path}/bundle.yaml: deployment")
        version, home = manifest.engine_version, path
        ignored += manifest.ignored
    else:
        deployment, home = load_deployment(path), path.resolve().parent
        version = deployment.engine_version
    model_file = find_file(deployment.model, home)
    model = load_model(model_file)
    check_layout(deployment, model)
    if operators is not None:
        deployment = deployment.model_copy(update={"operators": str(operators.resolve())})
    cluster = _only_cluster(deployment)
    if version not in ENGINE_VERSIONS:
        known = ", ".join(ENGINE_VERSIONS)
        ignored.append(f"engine version {version or 'unknown'}: scheduler rules of vLLM {known}")
    ignored += _not_honoured(deployment)
    capacity = kv_capacity(model, cluster.engine, _memory_gb(cluster), cluster.name)
    return Plan(  # fmt: skip
        deployment, home, model_file, model, cluster, capacity,
        version or ENGINE_VERSIONS[-1], tuple(ignored),
    )


def _only_cluster(deployment: Deployment) -> Cluster:
    cluster = deployment.clusters[0]
    if len(deployment.clusters) > 1 or cluster.role != "colocated":
        roles = ", ".join(f"{c.name}: {c.role}" for c in deployment.clusters)
        raise ConfigError(f"clusters: one co-located cluster can be simulated, got {roles}")
    engine = cluster.engine
    if engine.pipeline_parallel_size > 1:
        raise ConfigError("engine.pipeline_parallel_size: only 1 can be simulated")
    create_policy(engine.scheduling_policy)
    create_router(deployment.routing.policy)
    return cluster


def _not_honoured(deployment: Deployment) -> list[str]:
    """Knobs of the deployment that this simulation does not act on."""
    engine = deployment.clusters[0].engine
    found = {
        "lock-step of data-parallel MoE ranks": engine.data_parallel_size > 1
        and engine.enable_expert_parallel,
        "enable_dbo": engine.enable_dbo,
        "enable_eplb": engine.enable_eplb,
        "cudagraph_capture_sizes": bool(engine.cudagraph_capture_sizes),
        "links": bool(deployment.links),
        "pipeline": deployment.pipeline.policy != "none",
        "moe.expert_load": deployment.moe.expert_load != "uniform",
    }
    return [name for name, given in found.items() if given]


def _memory_gb(cluster: Cluster) -> float | None:
    if cluster.engine.num_gpu_blocks is not None:
        return None
    from simulator.hardware import load_hardware

    return load_hardware(cluster.hardware).memory_gb


def load_step_time(plan: Plan) -> tuple[StepTimeModel, dict[str, Any]]:
    """The step-time model the deployment names, and what to note of it in the manifest."""
    if plan.deployment.operators is None:
        raise ConfigError("operators: no profile given; make one with frontier fit and pass it "
                          "with --operators")  # fmt: skip
    path = find_file(plan.deployment.operators, plan.home)
    profile = load_profile(path)
    for key, value in profile.model.items():
        if getattr(plan.model, key) != value:
            raise ConfigError(
                f"{path}: fitted for {key} {value}, the deployment's model has "
                f"{getattr(plan.model, key)}"
            )
    if profile.hardware != plan.cluster.hardware:
        raise ConfigError(
            f"{path}: fitted on hardware {profile.hardware!r}, the deployment names "
            f"{plan.cluster.hardware!r}"
        )
    note = {
        "profile": content_hash(path / "profile.yaml"),
        "fitted_on": [f["hash"] for f in profile.fitted_on],
    }
    return FittedStepTime(profile, plan.model), note


def build_requests(workload: Workload, config: SchedulerConfig) -> list[Request]:
    """Requests of the simulation, in arrival order.

    Raises ConfigError naming the request that can never run: longer than max_model_len, or
    larger than the whole KV cache; and where block hashes cannot be mapped to block_size.
    """
    table = workload.requests
    prompts = table.column("prompt_tokens").to_pylist()
    outputs = table.column("output_tokens").to_pylist()
    names = table.column("request_id").to_pylist()
    arrivals = table.column("arrival_s").to_numpy()
    priorities = _optional(table, "priority", 0)
    hashes = block_hashes(workload, config.block_size, prompts, outputs)
    requests = []
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        _check_fits(names[i], i, prompt, output, config)
        requests.append(
            Request(
                i, prompt, output, name=names[i], arrival_ps=to_ps(float(arrivals[i])),
                priority=priorities[i] or 0, hashes=hashes[i], groups=len(config.windows),
            )  # fmt: skip
        )
    return requests


def _optional(table: pa.Table, name: str, default: int) -> list[int]:
    if name not in table.column_names:
        return [default] * len(table)
    values: list[int] = table.column(name).to_pylist()
    return values


def _check_fits(name: str, row: int, prompt: int, output: int, config: SchedulerConfig) -> None:
    where = f"request {name!r} (row {row})"
    if prompt + output > config.max_model_len:
        raise ConfigError(
            f"{where}: {prompt} prompt + {output} output tokens exceed max_model_len "
            f"{config.max_model_len}"
        )
    if output < 1:
        raise ConfigError(f"{where}: output_tokens is {output}, must be at least 1")
    blocks = sum(
        -(-(prompt + output) // config.block_size) for w in config.windows if w is None
    )
    if blocks > config.num_gpu_blocks - 1:
        raise ConfigError(
            f"{where}: needs {blocks} KV blocks of {config.block_size} tokens, the engine has "
            f"{config.num_gpu_blocks - 1}"
        )


def block_hashes(
    workload: Workload, block_size: int, prompts: Sequence[int], outputs: Sequence[int]
) -> list[list[int]]:
    """Chained hash of every full block of each request at ``block_size``.

    Blocks the workload says nothing about are unique to their request. Exact when one of
    the two block sizes divides the other, else ConfigError.
    """
    table, given = workload.requests, workload.hash_block_tokens
    known: list[list[int] | None] = [None] * len(prompts)
    if given and "block_hashes" in table.column_names:
        if max(given, block_size) % min(given, block_size):
            raise ConfigError(
                f"engine.block_size: {block_size} and the workload's hash blocks of {given} "
                "tokens do not divide one another"
            )
        known = table.column("block_hashes").to_pylist()
    result = []
    for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True)):
        mapped = _at_block_size(known[i] or [], given or block_size, block_size)
        full = (prompt + output) // block_size
        # Beyond 64 bits, so never equal to a hash of the workload.
        own = (1 << 64) + (i << 32)
        result.append(mapped[:full] + [own + j for j in range(len(mapped), full)])
    return result


def _at_block_size(hashes: list[int], given: int, wanted: int) -> list[int]:
    if wanted >= given:  # the last small block of a large one stands for it: hashes chain
        ratio = wanted // given
        return hashes[ratio - 1 :: ratio]
    ratio = given // wanted
    return [(h << 16) + j for h in hashes for j in range(ratio)]


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
    requests = build_requests(workload, config)
    replicas = plan.cluster.replicas * plan.cluster.engine.data_parallel_size
    recorder = Recorder(record, plan.cluster.name)
    simulation = Simulation(
        create_router(plan.deployment.routing.policy),
        lambda: Scheduler(config), model, replicas, recorder,
    )  # fmt: skip
    arrivals: Arrivals = OpenLoop(requests)
    if concurrency is not None:
        arrivals = ClosedLoop(requests, concurrency)
    simulation.run(arrivals, progress)
    for replica in simulation.stage.replicas:
        replica.scheduler.kv.check(requests)
    tables = {"requests": requests_table(workload.requests, requests, plan.cluster.name)}
    tables |= recorder.tables()
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
