"""A deployment made ready to simulate: files read, layout checked, KV and step time found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.deployment import (
    Cluster,
    Deployment,
    Engine,
    Role,
    check_layout,
    find_file,
    load_deployment,
    parse_deployment,
)
from simulator.hardware import DeviceLink, Hardware, load_hardware
from simulator.memory import KVCapacity, check_ffn_room, kv_capacity, pipeline_stages
from simulator.model import ModelSpec, load_model
from simulator.moe.deployed import deployed_loads
from simulator.moe.laws import check_law
from simulator.pipeline.roles import (
    attention_ffn,
    attention_part,
    ffn_activations,
    ffn_weights,
)
from simulator.routing import check_router
from simulator.scheduling import SchedulerConfig, create_policy
from simulator.scheduling.config import early_rules
from simulator.step_time.base import StepTimeModel
from simulator.step_time.deployed import KERNELS, deployed_step_time
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.fitted import PROFILE, FittedStepTime, StepProfile, load_profile
from simulator.step_time.sheet import sheet_profile
from traces.bundle import content_hash, inside, is_bundle, read_bundle
from traces.errors import ConfigError

ENGINE_VERSIONS = ("0.32.0",)
OVERLAPPING = ("deepep_low_latency", "deepep_high_throughput", "nixl_ep")


KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer", "attention": "kv_consumer"}


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """One cluster of a deployment, its KV sized; ``routing`` and ``operators`` as they apply.

    ``hands_over``: KV goes from a prefill cluster to another one. ``on_cpu``: its hardware is a
    processor, which vLLM's CPU platform runs on.
    """

    cluster: Cluster
    model: ModelSpec
    capacity: KVCapacity
    routing: str
    operators: str | None
    engine_version: str | None = None
    hands_over: bool = False
    on_cpu: bool = False

    @property
    def schedulers(self) -> int:
        """Schedulers of the deployment: every data-parallel rank of every engine has one."""
        return self.cluster.replicas * self.cluster.engine.data_parallel_size

    @property
    def lock_step_ranks(self) -> int:
        """Schedulers that step together: they share experts, or FFN ranks."""
        if self.cluster.role == "attention":
            return self.schedulers
        return self.cluster.engine.data_parallel_size if self.model.moe is not None else 1

    def scheduler_config(self) -> SchedulerConfig:
        """The scheduler's settings of the cluster's engines."""
        engine = self.cluster.engine
        names = (
            "block_size", "max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill",
            "enable_prefix_caching", "long_prefill_token_threshold",
            "long_prefill_token_threshold_adaptive", "scheduling_policy",
            "scheduler_reserve_full_isl", "watermark", "dp_sync_interval",
        )  # fmt: skip
        given = {name: getattr(engine, name) for name in names}
        stages = pipeline_stages(self.model.layers, engine.pipeline_parallel_size)
        return SchedulerConfig(
            # vLLM turns it off with a pipeline (``config/vllm.py``; V1 model runner)
            async_scheduling=engine.async_scheduling and len(stages) == 1,
            num_gpu_blocks=self.capacity.blocks,
            max_model_len=engine.max_model_len or self.model.max_len,
            windows=self.model.kv_windows(),
            kv_role=KV_ROLES.get(self.cluster.role, "") if self.hands_over else "",
            stage_layers=tuple(len(stage) for stage in stages),
            lock_step_ranks=self.lock_step_ranks,
            dbo_decode_token_threshold=engine.dbo_decode_token_threshold * engine.enable_dbo,
            dbo_prefill_token_threshold=engine.dbo_prefill_token_threshold * engine.enable_dbo,
            **(given | early_rules(self.engine_version)),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment resolved for simulation: files read, layout checked, KV sized."""

    deployment: Deployment
    home: Path
    model_file: Path
    model: ModelSpec
    clusters: tuple[ClusterPlan, ...]
    engine_version: str
    ignored: tuple[str, ...] = ()
    captured: bool = False  # the deployment is a measured bundle's own

    @property
    def only(self) -> ClusterPlan:
        """The one cluster of a co-located deployment; ConfigError if there are others."""
        if len(self.clusters) > 1:
            raise ConfigError(f"clusters: this needs a co-located one, got {_roles(self)}")
        return self.clusters[0]

    def side(self, *roles: Role) -> ClusterPlan:
        """The cluster with one of the roles; ConfigError unless there is exactly one."""
        found = [part for part in self.clusters if part.cluster.role in roles]
        if len(found) != 1:
            raise ConfigError(
                f"clusters: one with role {' or '.join(roles)} is needed for disaggregation, got "
                f"{_roles(self)}"
            )
        return found[0]

    def scheduler_config(self) -> SchedulerConfig:
        """The scheduler's settings of a co-located deployment's engines."""
        return self.only.scheduler_config()


def _roles(plan: Plan) -> str:
    return ", ".join(f"{part.cluster.name}: {part.cluster.role}" for part in plan.clusters)


def make_plan(path: Path, *, operators: Path | None = None) -> Plan:
    """Read a deployment file, or a bundle's own deployment. Raises ConfigError, TraceError."""
    ignored: list[str] = []
    version: str | None = None
    captured = False
    if is_bundle(path):
        manifest = read_bundle(path, eager=False).manifest
        deployment = parse_deployment(manifest.deployment, f"{path}/bundle.yaml: deployment")
        version, home = manifest.engine_version, path
        captured = manifest.kind == "measured"
        ignored += manifest.ignored
    else:
        deployment, home = load_deployment(path), path.resolve().parent
        version = deployment.engine_version
    model_file = (
        inside(path, deployment.model) if is_bundle(path) else find_file(deployment.model, home)
    )
    model = load_model(model_file)
    check_layout(deployment, model)
    for cluster in deployment.clusters:
        _check_pipeline(cluster, model)
        _check_overlap(cluster.engine)
    if operators is not None:
        # what the command line names stands above what the file does
        deployment = deployment.model_copy(
            update={
                "operators": str(operators.resolve()),
                "clusters": tuple(
                    cluster.model_copy(update={"operators": None})
                    for cluster in deployment.clusters
                ),
            }
        )
    _check_simulated(deployment, model)
    _check_ffn_memory(deployment, model, home, version)
    if version is None or version.split("+")[0] not in ENGINE_VERSIONS:
        known = ", ".join(ENGINE_VERSIONS)
        ignored.append(f"engine version {version or 'unknown'}: scheduler rules of vLLM {known}")
    ignored += _not_honoured(deployment)
    parts = tuple(
        ClusterPlan(
            cluster,
            model,
            kv_capacity(
                attention_part(model) if cluster.role == "attention" else model,
                cluster.engine,
                _memory_gb(cluster, home),
                cluster.name,
                version,
            ),
            cluster.routing or deployment.routing.policy,
            cluster.operators or deployment.operators,
            version,
            any(other.role == "prefill" for other in deployment.clusters),
            _is_cpu(cluster.hardware, home),
        )
        for cluster in deployment.clusters
        if cluster.role != "ffn"  # it schedules nothing: part of the attention cluster's steps
    )
    version = version or ENGINE_VERSIONS[-1]
    return Plan(deployment, home, model_file, model, parts, version, tuple(ignored), captured)


def sheet_profile_of(path: Path) -> StepProfile:
    """What the data sheet of a deployment's device promises of it. Raises ConfigError."""
    plan = make_plan(path)
    cluster = plan.only.cluster
    hardware = load_hardware(cluster.hardware, plan.home)
    return sheet_profile(plan.model, cluster.engine, hardware, plan.engine_version)


def _check_simulated(deployment: Deployment, model: ModelSpec) -> None:
    clusters = deployment.clusters
    roles = [cluster.role for cluster in clusters]
    if {"attention", "ffn"} <= set(roles) <= {"prefill", "attention", "ffn"} and (
        roles.count("prefill") <= 1
    ):
        attention_ffn(deployment, model)
    elif roles != ["colocated"] and sorted(roles) != ["decode", "prefill"]:
        given = ", ".join(f"{c.name}: {c.role}" for c in clusters)
        raise ConfigError(
            "clusters: one co-located cluster, one prefill and one decode cluster, or one "
            "attention and some ffn clusters (with a prefill one, if it is apart), can be "
            f"simulated, got {given}"
        )
    for cluster in clusters:
        create_policy(cluster.engine.scheduling_policy)
        check_router(cluster.routing or deployment.routing.policy)
    check_law(deployment.moe.expert_load)


def _check_ffn_memory(
    deployment: Deployment, model: ModelSpec, home: Path, version: str | None
) -> None:
    if not any(cluster.role == "ffn" for cluster in deployment.clusters):
        return
    weights, activations = ffn_weights(deployment, model), ffn_activations(deployment, model)
    for cluster in deployment.clusters:
        memory_gb = _memory_gb(cluster, home)
        if cluster.role == "ffn" and memory_gb is not None:
            needed = weights[cluster.name] + activations[cluster.name]
            check_ffn_room(needed, cluster.engine, memory_gb, cluster.name, version)


def _check_pipeline(cluster: Cluster, model: ModelSpec) -> None:
    engine = cluster.engine
    stages, ranks = engine.pipeline_parallel_size, engine.data_parallel_size
    if stages > 1 and cluster.role != "colocated":
        raise ConfigError(
            f"clusters[{cluster.name}].engine.pipeline_parallel_size: only 1 can be simulated in a "
            f"{cluster.role} cluster, got {stages}"
        )
    if stages > 1 and ranks > 1 and model.moe is not None:
        raise ConfigError(
            "engine.pipeline_parallel_size: with data-parallel ranks of a MoE model, which step "
            f"together, only 1 can be simulated, got {stages} stages and {ranks} ranks"
        )


def _check_overlap(engine: Engine) -> None:
    """vLLM's ``config/vllm.py``: what ``enable_dbo`` needs."""
    if not engine.enable_dbo:
        return
    if engine.all2all_backend not in OVERLAPPING:
        raise ConfigError(
            f"engine.enable_dbo: needs an all2all_backend of {', '.join(OVERLAPPING)}, got "
            f"{engine.all2all_backend}"
        )
    if min(engine.dbo_decode_token_threshold, engine.dbo_prefill_token_threshold) < 2:
        raise ConfigError("engine.dbo_decode_token_threshold, dbo_prefill_token_threshold: must "
                          "be at least 2, the number of micro-batches")  # fmt: skip


def _not_honoured(deployment: Deployment) -> list[str]:
    """Knobs of the deployment that this simulation does not act on."""
    engines = [cluster.engine for cluster in deployment.clusters]
    apart = any(cluster.role == "ffn" for cluster in deployment.clusters)
    found = {
        "enable_dbo without data-parallel ranks": any(
            e.enable_dbo and e.data_parallel_size == 1 for e in engines
        ),
        "cudagraph_capture_sizes": any(e.cudagraph_capture_sizes for e in engines),
        "links": len(deployment.clusters) == 1
        and any(link.from_ != link.to for link in deployment.links),
        "pipeline": not apart and deployment.pipeline.policy != "none",
    }
    return [name for name, given in found.items() if given]


def _memory_gb(cluster: Cluster, home: Path) -> float | None:
    if cluster.engine.num_gpu_blocks is not None:
        return None
    return load_hardware(cluster.hardware, home).memory_gb


def _is_cpu(name: str, home: Path) -> bool:
    try:
        return load_hardware(name, home).kind == "cpu"
    except ConfigError:
        return False


def _device(name: str, home: Path) -> str:
    """The sheet's name of a device, the name itself where there is no sheet."""
    try:
        return load_hardware(name, home).name
    except ConfigError:
        return name


def with_own_link(hardware: Hardware, plan: Plan, cluster: Cluster) -> Hardware:
    """The device with the link that the deployment measured inside a cluster, if it did."""
    for link in plan.deployment.links:
        if link.from_ == link.to == cluster.name:
            own = DeviceLink(
                kind="as given",
                bandwidth_gb_s=link.bandwidth_gb_s,
                latency_us=link.latency_us,
            )
            return hardware.model_copy(update={"intra_node": own})
    return hardware


def load_step_time(
    plan: Plan,
    part: ClusterPlan | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[StepTimeModel, dict[str, Any]]:
    """The step-time model of a cluster, and what to note of it in the manifest.

    Of the only cluster, if none is given.
    """
    part = part or plan.only
    if part.cluster.role == "attention":
        from replay.plan_attention_ffn import pipelined_step_time

        return pipelined_step_time(plan, progress)
    if part.operators is None:
        raise ConfigError("operators: no profile given; make one with frontier fit and pass it "
                          "with --operators")  # fmt: skip
    path = find_file(part.operators, plan.home)
    cluster = part.cluster
    if (path / KERNELS).is_file() and not (path / PROFILE).is_file():
        engine = cluster.engine
        loads = loads_of(plan, engine, path)
        hardware = with_own_link(load_hardware(cluster.hardware, plan.home), plan, cluster)
        return deployed_step_time(
            path, plan.model, engine, hardware, plan.engine_version, loads, progress
        )
    profile = load_profile(path)
    for key, value in profile.model.items():
        if getattr(plan.model, key) != value:
            raise ConfigError(
                f"{path}: fitted for {key} {value}, the deployment's model has "
                f"{getattr(plan.model, key)}"
            )
    if _device(profile.hardware, plan.home) != _device(cluster.hardware, plan.home):
        raise ConfigError(
            f"{path}: fitted on hardware {profile.hardware!r}, the deployment names "
            f"{cluster.hardware!r}"
        )
    for key, value in profile.layout.items():
        if getattr(cluster.engine, key) != value:
            raise ConfigError(
                f"{path}: fitted under {key} {value}, the deployment has "
                f"{getattr(cluster.engine, key)}"
            )
    note = {
        "profile": content_hash(path / "profile.yaml"),
        "fitted_on": [f["hash"] for f in profile.fitted_on],
        **({"link": profile.link} if profile.link else {}),
    }
    return FittedStepTime(profile, plan.model), note


def loads_of(plan: Plan, engine: Engine, profile: Path) -> ExpertLoads:
    """Expert loads of an engine, and where its experts lie. Raises ConfigError.

    Ranges of experts are those of FFN clusters; an engine that has all of them has them in order.
    """
    moe = plan.deployment.moe
    apart = any(cluster.role == "ffn" for cluster in plan.deployment.clusters)
    if apart and isinstance(moe.placement, dict):
        moe = moe.model_copy(update={"placement": "linear"})
    return deployed_loads(moe, plan.model, engine, plan.home, profile)
