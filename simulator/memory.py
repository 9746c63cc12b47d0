"""KV capacity: taken from the capture, else computed as vLLM sizes its pool.

vLLM's rule (``v1/worker/gpu_worker.py``, ``v1/core/kv_cache_utils.py``): what
``gpu_memory_utilization`` grants of the device's memory, less weights, peak activations,
CUDA graphs and what libraries took since start-up, divided by the bytes of one block of the
layers that share it; every rank gets the number of the poorest. NCCL's buffers are taken
before vLLM's first look at the memory and do not count.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

from simulator.deployment import Engine
from simulator.kv.groups import Group
from simulator.model import ModelSpec, dtype_bytes
from simulator.weights import compute_bytes, weight_bytes
from traces.errors import ConfigError

MIB = 1 << 20
# Kernels loaded, workspaces of libraries, allocator slack: vLLM measures them, we cannot.
# aiconfigurator-core 0.12 notes this much as observed (comments in its systems/*.yaml).
RUNTIME_BYTES = 551 * MIB
# The sampler of the profiling run holds logits in 16 bits and fp32, probabilities and
# noise in fp32 at once (v1/sample/ops/topk_topp_sampler.py), and an fp32 row for each
# program of its top-k kernel: one per SM, of which every large GPU has about this many.
BYTES_PER_LOGIT = 2 + 4 + 4 + 4
SAMPLER_PROGRAMS = 128


@dataclass(frozen=True, slots=True)
class KVCapacity:
    """Blocks of one replica, the null block included, and where the number comes from."""

    blocks: int
    source: str  # "given" (deployment or capture) or "computed"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of one rank: what the engine may use, and what it needs beside the KV cache."""

    granted: float
    weights: int
    activations: int
    graphs: int

    @property
    def left(self) -> float:
        """Bytes for the KV cache; negative if the rest does not fit."""
        return self.granted - self.weights - self.activations - self.graphs - RUNTIME_BYTES

    def __str__(self) -> str:
        """The sum, in GB."""
        parts = {
            "weights": self.weights, "activations": self.activations,
            "CUDA graphs": self.graphs, "runtime": RUNTIME_BYTES,
        }  # fmt: skip
        spent = " - ".join(f"{size / 1e9:.1f} GB {name}" for name, size in parts.items())
        return f"{self.granted / 1e9:.1f} GB granted - {spent} = {self.left / 1e9:.1f} GB"


def kv_capacity(
    model: ModelSpec,
    engine: Engine,
    memory_gb: float | None,
    name: str,
    engine_version: str | None = None,
) -> KVCapacity:
    """Blocks of a replica of cluster ``name``; ``memory_gb`` is the device's, in GB (1e9).

    Raises ConfigError if nothing is given to compute it from, and where vLLM would refuse:
    weights that do not fit, no KV block, one request of max_model_len that does not fit.
    """
    if engine.num_gpu_blocks is not None:
        return KVCapacity(engine.num_gpu_blocks, "given")
    where = f"clusters[{name}].engine"
    if memory_gb is None:
        raise ConfigError(
            f"{where}.num_gpu_blocks: needed, the hardware sheet names no device memory"
        )
    stages = pipeline_stages(model.layers, engine.pipeline_parallel_size)
    budgets = [memory_budget(model, engine, memory_gb, s, engine_version) for s in stages]
    blocks = [
        int(budget.left // block_bytes(model, engine, stage))
        for budget, stage in zip(budgets, stages, strict=True)
    ]
    poorest = blocks.index(min(blocks))
    _check_room(model, engine, budgets[poorest], blocks[poorest], where)
    return KVCapacity(blocks[poorest], "computed", str(budgets[poorest]))


def check_ffn_room(
    needed: int, engine: Engine, memory_gb: float, name: str, engine_version: str | None = None
) -> None:
    """Raise ConfigError if a rank of FFN cluster ``name`` has no room for ``needed`` bytes."""
    needed += RUNTIME_BYTES
    granted = memory_gb * 1e9 * granted_share(engine, engine_version)
    if needed > granted:
        raise ConfigError(
            f"clusters[{name}].engine: the weights do not fit: {needed / 1e9:.1f} GB a rank with "
            f"activations and the runtime, {granted / 1e9:.1f} GB granted, "
            f"{(needed - granted) / 1e9:.1f} GB missing"
        )


def granted_share(engine: Engine, engine_version: str | None) -> float:
    """Share of the device's memory that the engine may use."""
    default = 0.92 if _since_0_20(engine_version) else 0.90
    return engine.gpu_memory_utilization or default


def memory_budget(
    model: ModelSpec,
    engine: Engine,
    memory_gb: float,
    stage: range,
    engine_version: str | None = None,
) -> Budget:
    """What a rank of the pipeline stage with the layers ``stage`` has and needs."""
    recent = _since_0_20(engine_version)
    return Budget(
        granted=memory_gb * 1e9 * granted_share(engine, engine_version),
        weights=weight_bytes(model, engine, stage),
        activations=activation_bytes(model, engine),
        graphs=graph_bytes(model, engine) if recent else 0,
    )


def activation_bytes(model: ModelSpec, engine: Engine) -> int:
    """Peak of vLLM's profiling run: a forward of the token budget, or the sampler after it."""
    tokens, size = engine.max_num_batched_tokens, compute_bytes(model, engine)
    forward = max(_forward_bytes(model, engine, tokens), _mla_context_bytes(model, engine))
    sampler = tokens * model.hidden * size + model.vocab * (
        engine.max_num_seqs * BYTES_PER_LOGIT + min(engine.max_num_seqs, SAMPLER_PROGRAMS) * 4
    )
    return max(forward, sampler)


def ffn_activation_bytes(model: ModelSpec, engine: Engine, tokens: int) -> int:
    """Peak on an FFN rank to which ``tokens`` tokens of a micro-batch come with all experts."""
    return tokens * (2 * model.hidden + _ffn_row(model, engine)) * compute_bytes(model, engine)


def graph_bytes(model: ModelSpec, engine: Engine) -> int:
    """vLLM's estimate for CUDA graphs: the largest batch's activations and 1 MiB a graph.

    Every size is captured piecewise, those up to max_num_seqs also as a whole decode step
    (``profile_cudagraph_memory``: the first of each kind is measured, the others cost at
    least 1 MiB).
    """
    sizes = engine.graph_sizes()
    if not sizes:
        return 0
    whole = sum(size <= engine.max_num_seqs for size in sizes)
    return _forward_bytes(model, engine, sizes[-1]) + (len(sizes) + whole) * MIB


def kv_element_bytes(model: ModelSpec, engine: Engine) -> int:
    """Bytes of one number in the KV cache: of those computed with, unless it is told."""
    if engine.kv_cache_dtype != "auto":
        return dtype_bytes(engine.kv_cache_dtype)
    return compute_bytes(model, engine)


def block_bytes(model: ModelSpec, engine: Engine, stage: range | None = None) -> int:
    """Bytes of one pool block on one rank: the largest group's layers in the stage."""
    layers = range(model.layers) if stage is None else stage
    size = kv_element_bytes(model, engine)
    page = model.kv_elements(engine.tensor_parallel_size) * size * engine.block_size
    widest = max(sum(i in layers for i in group.layers) for group in model.kv_groups())
    return page * widest


def pipeline_stages(layers: int, stages: int) -> list[range]:
    """Layers of each pipeline stage; what is left over goes to the stages before the last.

    vLLM's ``distributed/utils.py: get_pp_indices``.

    >>> [len(stage) for stage in pipeline_stages(62, 4)]
    [15, 16, 16, 15]
    """
    sizes = [layers // stages] * stages
    for i in range(2, layers % stages + 2):
        sizes[-i] += 1
    ends = [sum(sizes[: i + 1]) for i in range(stages)]
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _forward_bytes(model: ModelSpec, engine: Engine, tokens: int) -> int:
    """Activations alive at once at the widest point of a layer, residual stream included."""
    tp = engine.tensor_parallel_size
    heads, kv_heads = model.heads // tp, max(1, model.kv_heads // tp)
    if model.mla is not None:
        kv_heads = heads  # keys and values are brought back to all heads
    row = max(2 * (heads + kv_heads) * model.head_dim, _ffn_row(model, engine))
    return tokens * (2 * model.hidden + row) * compute_bytes(model, engine)


def _ffn_row(model: ModelSpec, engine: Engine) -> int:
    """Elements per token at the widest point of an MLP or of the experts."""
    row = 0
    if model.moe_layers < model.layers:  # gate, up and their product
        row = 3 * model.inter // engine.tensor_parallel_size
    return row if model.moe is None else max(row, _expert_row(model, engine))


def _mla_context_bytes(model: ModelSpec, engine: Engine) -> int:
    """The up-projected context of chunked prefills, which the profiling run sets aside.

    ``mla_attention.py``: ``determine_chunked_prefill_workspace_size`` tokens of it.
    """
    if model.mla is None:
        return 0
    length = engine.max_model_len or model.max_len
    tokens = min(max(8 * length, 4 * engine.max_num_seqs * engine.block_size), 64 * 1024)
    row = model.heads // engine.tensor_parallel_size
    row *= model.mla.nope_head_dim + model.mla.v_head_dim
    return tokens * row * compute_bytes(model, engine)


def _expert_row(model: ModelSpec, engine: Engine) -> int:
    """Elements per token of the fused experts' workspaces (``TritonExperts.workspace_shapes``).

    A row per chosen expert. Under expert parallelism a rank is taken to receive as many
    rows as its own tokens make.
    """
    moe, tp = model.moe, engine.tensor_parallel_size
    assert moe is not None
    inter = moe.inter
    if not engine.enable_expert_parallel:
        inter //= tp * engine.data_parallel_size
    row = max(inter, model.hidden) + max(2 * inter, model.hidden)
    return moe.top_k * row + 3 * moe.shared_inter // tp


def _check_room(model: ModelSpec, engine: Engine, budget: Budget, blocks: int, where: str) -> None:
    if budget.weights > budget.granted:
        over = (budget.weights - budget.granted) / 1e9
        raise ConfigError(
            f"{where}: the weights do not fit: {budget.weights / 1e9:.1f} GB a rank, "
            f"{budget.granted / 1e9:.1f} GB granted, {over:.1f} GB too much"
        )
    if blocks < 2:
        raise ConfigError(f"{where}: no KV block fits: {budget}")
    length = engine.max_model_len or model.max_len
    if _blocks_needed(model, engine, length) > blocks - 1:
        fits = bisect_right(
            range(1, length + 1), blocks - 1, key=lambda n: _blocks_needed(model, engine, n)
        )
        raise ConfigError(
            f"{where}.max_model_len: one request of {length} tokens does not fit in the KV "
            f"cache: {blocks - 1} blocks of {engine.block_size} hold at most {fits} ({budget})"
        )


def _blocks_needed(model: ModelSpec, engine: Engine, tokens: int) -> int:
    """Blocks that one request of that length takes in all KV groups."""
    batches = engine.pipeline_parallel_size + engine.async_scheduling  # at once in flight
    in_flight = batches * engine.max_num_batched_tokens
    return sum(
        Group(engine.block_size, window).admission_cap(in_flight, tokens)
        for window in model.kv_windows()
    )


def _since_0_20(engine_version: str | None) -> bool:
    """vLLM 0.20 counts CUDA graphs and raised the default utilization from 0.90 to 0.92."""
    found = re.match(r"(\d+)\.(\d+)", engine_version or "")
    return found is None or (int(found[1]), int(found[2])) >= (0, 20)
