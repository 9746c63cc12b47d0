"""Which clusters of a deployment attend and which compute, and what joins them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from simulator.deployment import Cluster, Deployment, Link
from simulator.memory import ffn_activation_bytes
from simulator.model import ModelSpec
from simulator.pipeline import create_strategy
from simulator.pipeline.base import Strategy
from simulator.pipeline.cross_cluster import Bools, experts_held
from simulator.weights import ffn_weight_bytes
from traces.errors import ConfigError

MOST_AUTO = 4  # micro-batches that ``auto`` tries


@dataclass(frozen=True, slots=True)
class AttentionFFN:
    """The clusters of an attention/FFN deployment; one link each way for each FFN cluster.

    ``held (ffn clusters, experts)`` says which cluster has which expert; None for a dense
    model. ``micro_batches`` are the fewest and the most that are tried in each step.
    """

    attention: Cluster
    ffn: tuple[Cluster, ...]
    to: tuple[Link, ...]
    back: tuple[Link, ...]
    strategy: Strategy
    micro_batches: tuple[int, int]
    held: Bools | None


def attention_ffn(deployment: Deployment, model: ModelSpec) -> AttentionFFN:
    """The deployment's attention and FFN clusters. Raises ConfigError for what cannot be."""
    attention = [c for c in deployment.clusters if c.role == "attention"]
    ffn = [c for c in deployment.clusters if c.role == "ffn"]
    if len(attention) != 1 or not ffn:
        roles = ", ".join(f"{c.name}: {c.role}" for c in deployment.clusters)
        raise ConfigError(
            f"clusters: one with role attention and one or more with role ffn belong together, "
            f"got {roles}"
        )
    for cluster in ffn:
        _check_ffn(cluster)
    names = [cluster.name for cluster in ffn]
    held: Bools | None = None
    if model.moe is not None:
        held = experts_held(deployment.moe.placement, names, model.moe.experts)
        for cluster, mine in zip(ffn, held, strict=True):
            _check_split(cluster, int(mine.sum()))
    elif len(ffn) > 1:
        raise ConfigError(f"clusters: a dense model needs one FFN cluster, got {', '.join(names)}")
    strategy = create_strategy(deployment.pipeline.policy)
    return AttentionFFN(
        attention[0],
        tuple(ffn),
        tuple(_link(deployment, attention[0].name, name) for name in names),
        tuple(_link(deployment, name, attention[0].name) for name in names),
        strategy,
        _micro_batches(deployment, strategy),
        held,
    )


def attention_part(model: ModelSpec) -> ModelSpec:
    """The model without FFN weights: what an attention rank holds, its KV cache apart."""
    return replace(model, moe=None, inter=0)


def ffn_weights(deployment: Deployment, model: ModelSpec) -> dict[str, int]:
    """Bytes of weights on a rank of each FFN cluster. Raises ConfigError for what cannot be.

    The first cluster has the dense MLPs and shared experts too.
    """
    held = _experts_of(attention_ffn(deployment, model))
    return {
        cluster.name: ffn_weight_bytes(model, cluster.engine, experts, first=i == 0)
        for i, (cluster, experts) in enumerate(held)
    }


def ffn_activations(deployment: Deployment, model: ModelSpec) -> dict[str, int]:
    """Bytes of activations on a rank of each FFN cluster. Raises ConfigError for what cannot be.

    Of the largest micro-batch that a step may be cut into, with even expert loads.
    """
    apart, found = attention_ffn(deployment, model), {}
    engine = apart.attention.engine
    ranks = apart.attention.replicas * engine.data_parallel_size
    largest = ranks * engine.max_num_batched_tokens / apart.micro_batches[0]
    for cluster, experts in _experts_of(apart):
        engine = cluster.engine
        share = experts / model.moe.experts if model.moe else 1.0
        whole = engine.tensor_parallel_size if engine.enable_expert_parallel else 1
        groups = cluster.replicas * engine.data_parallel_size * whole
        tokens = ceil(largest * share / groups)
        found[cluster.name] = ffn_activation_bytes(model, engine, tokens)
    return found


def _experts_of(apart: AttentionFFN) -> list[tuple[Cluster, int]]:
    """Each FFN cluster with the number of experts it holds."""
    held = np.zeros(len(apart.ffn), int) if apart.held is None else apart.held.sum(1)
    return [(cluster, int(n)) for cluster, n in zip(apart.ffn, held, strict=True)]


def _check_ffn(cluster: Cluster) -> None:
    if cluster.engine.num_gpu_blocks is not None:
        raise ConfigError(
            f"clusters[{cluster.name}].engine.num_gpu_blocks: an FFN cluster holds no KV cache; "
            "give it to the attention cluster"
        )


def _check_split(cluster: Cluster, experts: int) -> None:
    engine = cluster.engine
    ranks = engine.tensor_parallel_size * engine.data_parallel_size
    if engine.enable_expert_parallel and experts % ranks:
        raise ConfigError(
            f"moe.placement.{cluster.name}: {experts} experts cannot be divided over {ranks} "
            "expert-parallel ranks"
        )


def _link(deployment: Deployment, source: str, destination: str) -> Link:
    found = [x for x in deployment.links if (x.from_, x.to) == (source, destination)]
    if len(found) != 1:
        raise ConfigError(
            f"links: one from {source} to {destination} is needed, for the activations of every "
            f"layer, got {len(found)}"
        )
    return found[0]


def _micro_batches(deployment: Deployment, strategy: Strategy) -> tuple[int, int]:
    given = deployment.pipeline.micro_batches
    if given == "auto":
        least, most = strategy.cut(1), strategy.cut(MOST_AUTO)
        return least, max(least, most)
    if given < 1:
        raise ConfigError(f"pipeline.micro_batches: must be at least 1, got {given}")
    made = strategy.cut(given)
    if made != given and given != 1:
        raise ConfigError(f"pipeline.micro_batches: {strategy.name} makes {made}, got {given}")
    return made, made


def even_loads(model: ModelSpec) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Shares of token-expert pairs under even routing, ``(layers with experts, experts)``."""
    assert model.moe is not None
    return np.full((model.moe_layers, model.moe.experts), 1.0 / model.moe.experts)
