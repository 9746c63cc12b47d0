"""Step times where attention and FFN are clusters of their own, from the prices of each.

Per layer and micro-batch of n tokens on each of S attention ranks (schedulers), which step
together and are taken to have equal batches::

    attention   projections, attention kernel, norms, router; of n tokens
    a2f         to each FFN cluster over its link: bytes through the busiest port / bandwidth
    ffn         dense MLP, or shared and routed experts; of the S n tokens of all ranks
    f2a         back, likewise

A token travels once to every FFN rank that holds one of its experts: to a share
1 - (1 - p)^k of ranks that get p of the token-expert pairs, with k experts a token. A link's
bandwidth is that of each rank's port; the port that moves most decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import to_ps
from simulator.model import ModelSpec
from simulator.pipeline import Lanes, Pipeline, Stage
from simulator.pipeline.cross_cluster import cluster_shares
from simulator.pipeline.roles import AttentionFFN, even_loads
from simulator.step_time.functions import Constant, Dense
from simulator.step_time.pipelined import PipelinedStepTime
from simulator.step_time.prices import Prices
from simulator.step_time.stage_prices import AttentionSide, FFNSide, Split, StagePrices

Floats = npt.NDArray[np.float64]


def split_of(
    clusters: AttentionFFN,
    model: ModelSpec,
    attention: AttentionSide,
    ffn: Sequence[Prices],
    loads: Floats | None = None,
    replica_choice: str | None = None,
) -> Split:
    """A deployment with its prices: the attention side, and those of each FFN cluster.

    ``loads (layers, experts)`` are shares of token-expert pairs, even ones by default; a
    cluster's share is the mean over layers. Raises ConfigError for an unknown choice.
    """
    shares = np.ones(len(clusters.ffn))
    counts = np.zeros(len(clusters.ffn), int)
    if clusters.held is not None:
        loads = even_loads(model) if loads is None else loads
        shares = cluster_shares(clusters.held, loads, replica_choice).mean(0)
        counts = clusters.held.sum(1)
    sides = [
        FFNSide(cluster, prices, to, back, int(count), float(share))
        for cluster, prices, to, back, count, share in zip(
            clusters.ffn, ffn, clusters.to, clusters.back, counts, shares, strict=True
        )
    ]
    return Split(
        model, attention, sides, clusters.strategy,
        clusters.micro_batches,
    )  # fmt: skip


def attention_ffn_step_time(
    split: Split, *, step_s: float = 0.0, frontend_s: float = 0.0
) -> tuple[PipelinedStepTime, dict[str, Any]]:
    """The step-time model, and what to note of its prices; ``step_s`` is added to every step.

    Raises ConfigError if a price is missing.
    """
    model, engine = split.model, split.attention.cluster.engine
    kinds = _kinds(model)
    names = sorted(set(kinds))
    lines = [names.index(kind) for kind in kinds] + [len(names)]  # the last closes the step
    lanes = Lanes(1, len(split.ffn), split.one_device)
    latency_ps: dict[Stage, list[int]] = {
        "a2f": [to_ps(side.to.latency_us * 1e-6) for side in split.ffn],
        "f2a": [to_ps(side.back.latency_us * 1e-6) for side in split.ffn],
    }
    pipelines = [
        Pipeline(split.strategy, model.layers, m, lanes, lines, latency_ps)
        for m in range(1, split.micro_batches[1] + 1)
    ]
    pricing = StagePrices(split)
    costs = [cost for i, kind in enumerate(names) for cost in pricing.layer(i, *kind)]
    costs += pricing.closing(len(names))
    opening = pricing.table(split.attention.prices, pricing.calls.opening)
    step_time = PipelinedStepTime(
        costs,
        pipelines,
        least=split.micro_batches[0],
        outside=[(1.0, Dense("tokens", opening)), (step_s, Constant())],
        frontend_ps=to_ps(frontend_s),
        ranges={"tokens": pricing.most, "sampled": engine.max_num_seqs},
    )
    estimated: dict[str, str] = {}
    sides: list[AttentionSide | FFNSide] = [split.attention, *split.ffn]
    for side in sides:
        estimated |= {f"{side.cluster.name}: {k}": v for k, v in side.prices.estimated.items()}
    return step_time, {"estimated": estimated, "measured_to_tokens": pricing.most}


def _kinds(model: ModelSpec) -> list[tuple[int, bool]]:
    """Window (0: none) of each layer, and whether it has experts."""
    moe = set(model.moe.layers) if model.moe else set()
    return [(window or 0, i in moe) for i, window in enumerate(model.windows)]
