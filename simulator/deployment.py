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
    enable_expert_parallel: bool = False
    enable_eplb: bool = False
    num_redundant_experts: int = Field(0, ge=0)
    enable_dbo: bool = False
    dbo_decode_token_threshold: int = Field(32, ge=0)
    dbo_prefill_token_threshold: int = Field(512, ge=0)
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    max_model_len: int | None = Field(None, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    block_size: int = Field(16, ge=1)
    num_gpu_blocks: int | None = Field(None, ge=2)
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = Field(0, ge=0)
    long_prefill_token_threshold_adaptive: bool = False
    scheduling_policy: str = "fcfs"
    async_scheduling: bool = True
    scheduler_reserve_full_isl: bool = True
    watermark: float = Field(0.0, ge=0, lt=1)
    enforce_eager: bool = False
    cudagraph_capture_sizes: list[int] | None = None


class Cluster(_Strict):
    """Replicas of one engine on one kind of hardware."""

    name: str = "main"
    role: Role = "colocated"
    replicas: int = Field(1, ge=1)
    hardware: str = "cpu"
    engine: Engine = Engine()


class Link(_Strict):
    """A connection between two clusters."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    from_: str = Field(alias="from")
    to: str
    bandwidth_gb_s: float = Field(gt=0)
    latency_us: float = Field(0.0, ge=0)
    contention: Literal["fair", "fifo", "none"] = "fair"


class Routing(_Strict):
    """How arrivals are spread over the replicas."""

    policy: str = "round_robin"


class Pipeline(_Strict):
    """How attention and FFN clusters overlap."""

    policy: Literal["none", "two_batch", "ping_pong", "three_stage"] = "none"
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
        faults = [_fault(e, source) for e in error.errors()]
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
    return f"{source}: {path}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _keys_beside(error: Any) -> list[str]:
    model: type[BaseModel] = Deployment
    inner = {
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

    Raises ConfigError naming both places.
    """
    for root in (beside, SHIPPED):
        if (root / name).exists():
            return root / name
    raise ConfigError(f"{name}: neither in {beside} nor shipped")


def model_of(deployment: Deployment, beside: Path) -> ModelSpec:
    """The deployment's model; raises ConfigError."""
    return load_model(find_file(deployment.model, beside))


def check_layout(deployment: Deployment, model: ModelSpec) -> None:
    """Refuse what vLLM refuses, with its reason. Raises ConfigError."""
    for cluster in deployment.clusters:
        engine, where = cluster.engine, f"clusters[{cluster.name}].engine"
        tp = engine.tensor_parallel_size
        if model.heads % tp:
            raise ConfigError(
                f"{where}.tensor_parallel_size: {tp} does not divide the model's "
                f"{model.heads} attention heads"
            )
        if max(model.kv_heads, tp) % min(model.kv_heads, tp):
            raise ConfigError(
                f"{where}.tensor_parallel_size: {tp} neither divides nor is a multiple of the "
                f"model's {model.kv_heads} KV heads"
            )
        if engine.pipeline_parallel_size > model.layers:
            raise ConfigError(
                f"{where}.pipeline_parallel_size: {engine.pipeline_parallel_size} stages for "
                f"{model.layers} layers"
            )
        if engine.enable_expert_parallel:
            _check_experts(engine, model, where)
        length = engine.max_model_len or model.max_len
        if not engine.enable_chunked_prefill and engine.max_num_batched_tokens < length:
            raise ConfigError(
                f"{where}.max_num_batched_tokens: {engine.max_num_batched_tokens} is smaller "
                f"than max_model_len {length} while enable_chunked_prefill is false"
            )
        if engine.max_num_batched_tokens < engine.max_num_seqs:
            raise ConfigError(
                f"{where}.max_num_batched_tokens: {engine.max_num_batched_tokens} is smaller "
                f"than max_num_seqs {engine.max_num_seqs}"
            )


def _check_experts(engine: Engine, model: ModelSpec, where: str) -> None:
    if model.moe is None:
        raise ConfigError(f"{where}.enable_expert_parallel: the model has no experts")
    ranks = engine.tensor_parallel_size * engine.data_parallel_size
    experts = model.moe.experts + engine.num_redundant_experts
    if experts % ranks:
        raise ConfigError(
            f"{where}.enable_expert_parallel: {experts} experts over {ranks} ranks do not divide"
        )
