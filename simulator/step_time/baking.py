"""The dense tables of a deployed shape: every operator priced at every size.

Needs what prices need, models of unmeasured shapes among it; tables.py reads without.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.deployment import Engine
from simulator.model import ModelSpec
from simulator.step_time.attention_grid import AttentionGrid, measured_grid
from simulator.step_time.attention_predicted import predicted_grid
from simulator.step_time.expert_baking import bake_experts
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.layers import (
    COLLECTIVES,
    SAMPLED,
    TOKENS,
    Call,
    attention_calls,
    calls,
    hops,
)
from simulator.step_time.padding import padded_tokens
from simulator.step_time.prices import Prices
from simulator.step_time.select_kernels import where
from simulator.step_time.tables import StepTables

Floats = npt.NDArray[np.float64]

MODULE = (  # what kernels of an ``mla_module`` hold beside the attention itself
    "q_proj", "kv_a_proj", "fused_qkv_a_proj", "q_b_proj", "o_proj", "rotary_emb", "kv_write",
)  # fmt: skip


def bake(
    prices: Prices, model: ModelSpec, engine: Engine, loads: ExpertLoads | None = None
) -> StepTables:
    """Price every operator of a step at every size. Raises ConfigError for what is missing."""
    tokens = np.arange(1.0, engine.max_num_batched_tokens + 1)
    sampled = np.arange(1.0, engine.max_num_seqs + 1)
    local, wires, limits = _summed(prices, model, engine, TOKENS, tokens)
    by_sampled, gather, own_limits = _summed(prices, model, engine, SAMPLED, sampled)
    padded = padded_tokens(engine, len(tokens))
    attention = attention_calls(model, engine.tensor_parallel_size)
    grids, _ = attention_grids(prices, model, engine)
    experts = bake_experts(prices, model, engine, loads or ExpertLoads())
    return StepTables(
        local[padded],
        wires[padded],
        _between_stages(prices, hops(model, engine), tokens)[padded],
        by_sampled + gather,
        limits | own_limits,
        max(engine.graph_sizes(), default=0),
        grids,
        [call.count for call in attention],
        experts,
        {
            "estimated": dict(prices.estimated),
            "fitted": dict(prices.unmeasured.used),
            **(experts.notes if experts else {}),
        },
    )


def attention_grids(
    prices: Prices, model: ModelSpec, engine: Engine
) -> tuple[list[AttentionGrid], tuple[str, ...]]:
    """A table for each window of the model, and the layers whose time they include."""
    grids = [
        measured_grid(prices.kernels, call)
        or predicted_grid(prices.unmeasured, prices.types, call, model, engine)
        for call in attention_calls(model, engine.tensor_parallel_size)
    ]
    return grids, MODULE if model.mla is not None and _whole_module(prices) else ()


def _between_stages(prices: Prices, sends: list[Call], sizes: Floats) -> Floats:
    """Mean seconds of a hop from one pipeline stage to the next, from 0 tokens on."""
    if not sends:
        return np.zeros(len(sizes) + 1)
    seconds = np.mean([prices.seconds(call, sizes)[0] for call in sends], axis=0)
    return np.concatenate([[0.0], seconds])


def _summed(
    prices: Prices, model: ModelSpec, engine: Engine, rows: str, sizes: Floats
) -> tuple[Floats, Floats, dict[str, tuple[str, int]]]:
    """Seconds of all operators that grow with ``rows``, collectives apart, from 0 tokens on.

    And the layers that were not measured up to the last size: see ``StepTables``.
    """
    sums = {False: np.zeros(len(sizes) + 1), True: np.zeros(len(sizes) + 1)}
    limits: dict[str, tuple[str, int]] = {}
    inside = MODULE if model.mla is not None and _whole_module(prices) else ()
    for call in calls(model, engine):
        if call.rows == rows and call.layer not in inside:
            seconds, outside = prices.seconds(call, sizes)
            if prices.hardware.kind == "gpu":
                seconds = np.where(sizes <= call.beside, 0.0, seconds)
            sums[call.family in COLLECTIVES][1:] += call.count * seconds
            if outside[-1]:
                most = int(sizes[~outside].max(initial=0))
                limits[call.layer] = (rows, min(most, limits.get(call.layer, (rows, most))[1]))
    return sums[False], sums[True], limits


def _whole_module(prices: Prices) -> bool:
    """Whether latent attention was measured with its projections."""
    return bool(len(where(prices.kernels, {"operator": "mla_decode", "layer": "mla_module"})))
