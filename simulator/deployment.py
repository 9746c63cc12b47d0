"""The deployment file: what serves the requests. YAML, checked key by key.

Engine keys are vLLM's own argument names, models are HF ``config.json`` files; relative
paths are looked for beside the file, then among the shipped ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.model import ModelSpec, load_model
from traces.errors import ConfigError, nearest

SHIPPED = Path(__file__).resolve().parent.parent

Role = Literal["colocated", "prefill", "decode", "attention", "ffn"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Engine(_Strict):
    """Arguments of one vLLM engine, under vLLM's names; None means vLLM's own default."""

    tensor_parallel_size: int = Field(1, ge=1)
    pipeline_parallel_size: int = Field(1, ge=1)
    data_parallel_size: int = Field(1, ge=1)
    dp_sync_interval: int = Field(16, ge=1)
    enable_expert_parallel: bool = False
    all2all_backend: str = "allgather_reducescatter"
    enable_eplb: bool = False
    num_redundant_experts: int = Field(0, ge=0)
    enable_dbo: bool = False
    dbo_decode_token_threshold: int = Field(32, ge=0)
    dbo_prefill_token_threshold: int = Field(512, ge=0)
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    moe_backend: str = "auto"
    max_model_len: int | None = Field(None, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    block_size: int = Field(16, ge=1)
    num_gpu_blocks: int | None = Field(None, ge=2)
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = Field(0, ge=0)
    long_prefill_token_threshold_adaptive: bool = False
    scheduling_policy: str = "fcfs"
    async_scheduling: bool = True
    scheduler_reserve_full_isl: bool = True
    watermark: float = Field(0.0, ge=0, lt=1)
    enforce_eager: bool = False
    cudagraph_capture_sizes: tuple[int, ...] | None = None

    def graph_sizes(self) -> tuple[int, ...]:
        """Batch sizes that CUDA graphs are captured for, ascending; empty under enforce_eager.

        vLLM's defaults (``config/vllm.py``, ``_set_cudagraph_sizes``) unless they are given.

        >>> Engine(max_num_seqs=5).graph_sizes()
        (1, 2, 4, 5, 8)
        """
        if self.enforce_eager:
            return ()
        most = self.max_num_batched_tokens
        if self.cudagraph_capture_sizes is not None:
            return tuple(sorted({s for s in self.cudagraph_capture_sizes if s <= most}))
        largest = min(2 * self.max_num_seqs, 512, most)
        sizes = {s for s in (1, 2, 4) if s <= largest}
        sizes |= {*range(8, min(largest + 1, 256), 8), *range(256, largest + 1, 16)}
        return tuple(sorted(sizes | {s for s in (self.max_num_seqs, most) if s <= largest}))


class Cluster(_Strict):
    """Replicas of one engine on one kind of hardware."""

    name: str = "main"
    role: Role = "colocated"
    replicas: int = Field(1, ge=1)
    hardware: str = "cpu"
    engine: Engine = Engine()
    routing: str | None = None  # policy, if not that of the deployment
    operators: str | None = None  # profile, if not that of the deployment


class Link(_Strict):
    """A connection between two clusters.

    ``shared_by`` names the transfers that share its bandwidth: all between the clusters, or
    those of a source replica, of a destination replica, or of a pair. A transfer takes
    ``setup_us`` before its first byte, its bytes over the bandwidth (1 GB = 1e9 bytes), and
    ``latency_us``. For KV between a prefill and a decode cluster: decode replicas pull when
    prefill has finished and they have room, or prefill replicas push to blocks that are
    reserved when the request arrives, ``layerwise`` while they compute. Blocks are kept for
    ``lease_s``, longer only if the decode side renews it (vLLM's heartbeats).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    from_: str = Field(alias="from")
    to: str
    bandwidth_gb_s: float = Field(gt=0)
    latency_us: float = Field(0.0, ge=0)
    setup_us: float = Field(0.0, ge=0)
    contention: Literal["fair", "fifo", "none"] = "fair"
    shared_by: Literal["all", "source", "destination", "pair"] = "all"
    transfer: Literal["pull", "push"] = "pull"
    layerwise: bool = False
    lease_s: float = Field(30.0, gt=0)
    lease_renewal: bool = True


class Routing(_Strict):
    """How requests are spread over the replicas.

    ``proxy_us`` is the time from the answer of a prefill replica to the request to a decode
    replica; with ``skip_decode`` a request for one token ends with the former.
    """

    policy: str = "round_robin"
    proxy_us: float = Field(0.0, ge=0)
    skip_decode: bool = False


class Pipeline(_Strict):
    """How attention and FFN clusters overlap."""

    policy: Literal["none", "two_batch", "ping_pong", "three_stage", "shared_expert"] = "none"
    micro_batches: int | Literal["auto"] = 1


class MoE(_Strict):
    """Expert loads and placement."""

    expert_load: dict[str, Any] | str = "uniform"
    placement: Any = "linear"
    replica_choice: str | None = None


class Deployment(_Strict):
    """A whole deployment file."""

    model: str
    clusters: tuple[Cluster, ...] = Field(min_length=1)
    links: tuple[Link, ...] = ()
    routing: Routing = Routing()
    moe: MoE = MoE()
    pipeline: Pipeline = Pipeline()
    operators: str | None = None
    engine_version: str | None = None
    launch: dict[str, Any] = {}


def parse_deployment(raw: Mapping[str, Any], source: str) -> Deployment:
    """Check a deployment's content; ``source`` names the file in errors.

    Raises ConfigError with every fault as ``source: key.path: what``.
    """
    try:
        return Deployment.model_validate(raw)
    except ValidationError as error:
        # pydantic also counts a list as too short for every item that has a fault
        real = [e for e in error.errors() if e["type"] != "too_short" or not e["input"]]
        faults = [_fault(e, source) for e in real]
        raise ConfigError("; ".join(faults)) from None


def _fault(error: Any, source: str) -> str:
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if error["type"] == "extra_forbidden":
        return f"{source}: unknown key {path}{nearest(error['loc'][-1], _keys_beside(error))}"
    if error["type"] == "literal_error":
        given, expected = str(error["input"]), error["ctx"]["expected"]
        names = [n.strip().strip("'") for n in expected.replace(" or ", ", ").split(",")]
        return f"{source}: {path}: unknown {given!r}{nearest(given, names)}"
    if error["type"] == "missing":
        return f"{source}: {path} is missing"
    if error["type"] == "too_short":
        return f"{source}: {path} is empty"
    return f"{source}: {path}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _keys_beside(error: Any) -> list[str]:
    model: type[BaseModel] = Deployment
    inner: dict[str, type[BaseModel]] = {
        "clusters": Cluster, "engine": Engine, "links": Link, "routing": Routing, "moe": MoE,
        "pipeline": Pipeline,
    }  # fmt: skip
    for part in error["loc"][:-1]:
        model = inner.get(str(part), model)
    return [f.alias or n for n, f in model.model_fields.items()]


def load_deployment(path: Path) -> Deployment:
    """Read a deployment file; raises ConfigError."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError:
        raise ConfigError(f"{path}: no such deployment file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys such as model and clusters")
    return parse_deployment(raw, str(path))


def find_file(name: str, beside: Path) -> Path:
    """Resolve a path of a deployment file: beside it, then among the shipped files.

    Raises ConfigError naming both places, and the nearest shipped model.
    """
    for root in (beside, SHIPPED):
        if (root / name).exists():
            return root / name
    models = [f"traces/models/{p.name}" for p in (SHIPPED / "traces" / "models").glob("*.json")]
    hint = nearest(name, models) if name.endswith(".json") else ""
    raise ConfigError(f"{name}: neither in {beside} nor shipped{hint}")


def model_of(deployment: Deployment, beside: Path) -> ModelSpec:
    """The deployment's model; raises ConfigError."""
    return load_model(find_file(deployment.model, beside))


def check_layout(deployment: Deployment, model: ModelSpec) -> None:
    """Refuse what vLLM refuses, with its reason. Raises ConfigError."""
    names = [cluster.name for cluster in deployment.clusters]
    for i, cluster in enumerate(deployment.clusters):
        if cluster.name in names[:i]:
            raise ConfigError(f"clusters[{i}].name: {cluster.name!r} is already taken")
        where = f"clusters[{cluster.name}].engine"
        _check_tensor_parallel(cluster.engine, model, where)
        if cluster.role != "attention":  # it holds no experts
            _check_experts(cluster.engine, model, where)
        _check_scheduler(cluster.engine, model, where)
    for i, link in enumerate(deployment.links):
        for end, name in (("from", link.from_), ("to", link.to)):
            if name not in names:
                raise ConfigError(
                    f"links[{i}].{end}: unknown cluster {name!r}{nearest(name, names)}"
                )


def _check_tensor_parallel(engine: Engine, model: ModelSpec, where: str) -> None:
    tp, stages = engine.tensor_parallel_size, engine.pipeline_parallel_size
    if model.heads % tp:
        raise ConfigError(
            f"{where}.tensor_parallel_size: {tp} does not divide the model's "
            f"{model.heads} attention heads"
        )
    if model.mla is None and max(model.kv_heads, tp) % min(model.kv_heads, tp):
        raise ConfigError(
            f"{where}.tensor_parallel_size: {tp} neither divides nor is a multiple of the "
            f"model's {model.kv_heads} KV heads"
        )
    if model.moe_layers < model.layers and model.inter % tp:
        raise ConfigError(
            f"{where}.tensor_parallel_size: {tp} does not divide the model's "
            f"intermediate_size {model.inter}"
        )
    if stages > model.layers:
        raise ConfigError(
            f"{where}.pipeline_parallel_size: {stages} stages for {model.layers} layers"
        )


def _check_experts(engine: Engine, model: ModelSpec, where: str) -> None:
    ranks = engine.tensor_parallel_size * engine.data_parallel_size
    if engine.enable_eplb and not engine.enable_expert_parallel:
        raise ConfigError(f"{where}.enable_eplb: needs enable_expert_parallel")
    if engine.num_redundant_experts and not engine.enable_eplb:
        raise ConfigError(f"{where}.num_redundant_experts: needs enable_eplb")
    if model.moe is None:
        if engine.enable_expert_parallel:
            raise ConfigError(f"{where}.enable_expert_parallel: the model has no experts")
        return
    experts = model.moe.experts + engine.num_redundant_experts
    if engine.enable_expert_parallel and experts < ranks:
        raise ConfigError(
            f"{where}.enable_expert_parallel: {experts} experts over {ranks} ranks: "
            f"{ranks - experts} would hold none"
        )
    if engine.enable_expert_parallel and experts % ranks:
        raise ConfigError(
            f"{where}.enable_expert_parallel: {experts} experts over {ranks} ranks do not divide"
        )
    if not engine.enable_expert_parallel and model.moe.inter % ranks:
        raise ConfigError(
            f"{where}: {ranks} ranks (tensor x data parallel) do not divide the experts' "
            f"intermediate size {model.moe.inter}; enable_expert_parallel splits by expert"
        )


def _check_scheduler(engine: Engine, model: ModelSpec, where: str) -> None:
    length, budget = engine.max_model_len or model.max_len, engine.max_num_batched_tokens
    if not engine.enable_chunked_prefill and budget < length:
        raise ConfigError(
            f"{where}.max_num_batched_tokens: {budget} is smaller than max_model_len {length} "
            "while enable_chunked_prefill is false"
        )
    if budget < engine.max_num_seqs:
        raise ConfigError(
            f"{where}.max_num_batched_tokens: {budget} is smaller than max_num_seqs "
            f"{engine.max_num_seqs}"
        )
    if engine.long_prefill_token_threshold > length:
        raise ConfigError(
            f"{where}.long_prefill_token_threshold: {engine.long_prefill_token_threshold} is "
            f"greater than max_model_len {length}"
        )
