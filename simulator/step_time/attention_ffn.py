"""Step times where attention and FFN are clusters of their own, from the prices of each.

Per layer and micro-batch of n tokens on one of the attention ranks (schedulers), which step
together, and N on all of them::

    attention   projections, attention kernel, norms, router; of n tokens
    a2f         to each FFN cluster over its link: bytes through the busiest port / bandwidth
    ffn         dense MLP, or shared and routed experts of the slowest rank; of N tokens
    f2a         back, likewise

A link's bandwidth is that of each rank's port; the port that moves most decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import to_ps
from simulator.model import ModelSpec
from simulator.pipeline import Lanes, Pipeline, Stage
from simulator.pipeline.cross_cluster import cluster_parts, cluster_shares
from simulator.pipeline.roles import AttentionFFN, even_loads
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.ffn_loads import law_shares
from simulator.step_time.functions import Constant, Dense
from simulator.step_time.pipelined import PipelinedStepTime, StageCost
from simulator.step_time.prices import Prices
from simulator.step_time.split import AttentionSide, FFNSide, Split
from simulator.step_time.stage_prices import StagePrices

Floats = npt.NDArray[np.float64]


def split_of(
    clusters: AttentionFFN,
    model: ModelSpec,
    attention: AttentionSide,
    ffn: Sequence[Prices],
    loads: ExpertLoads | None = None,
    replica_choice: str | None = None,
) -> Split:
    """A deployment with its prices: the attention side, and those of each FFN cluster.

    Every expert gets the same where no ``loads`` are given; a cluster's share is the mean over
    layers. Raises ConfigError for an unknown choice.
    """
    sides = [
        FFNSide(cluster, prices, to, back)
        for cluster, prices, to, back in zip(
            clusters.ffn, ffn, clusters.to, clusters.back, strict=True
        )
    ]
    if clusters.held is not None:
        shares = even_loads(model) if loads is None else law_shares(loads, model)
        parts = cluster_parts(clusters.held, replica_choice)
        of_all = cluster_shares(parts, shares).mean(0)
        for side, held, part, share in zip(sides, clusters.held, parts, of_all, strict=True):
            side.experts, side.part, side.share = int(held.sum()), part, float(share)
    return Split(
        model, attention, sides, clusters.strategy, clusters.micro_batches, loads=loads
    )  # fmt: skip


def attention_ffn_step_time(
    split: Split, *, step_s: float = 0.0, frontend_s: float = 0.0
) -> tuple[PipelinedStepTime, dict[str, Any]]:
    """The step-time model, and what to note of its prices; ``step_s`` is added to every step.

    Raises ConfigError if a price is missing.
    """
    model = split.model
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
    measured = {
        "tokens": pricing.most, "sampled": pricing.most_sampled,
        "engine_tokens": pricing.most_of_all,
    }  # fmt: skip
    costs.append(StageCost("attention", 0, [], beside=True, ranges=measured))
    step_time = PipelinedStepTime(
        costs,
        pipelines,
        least=split.micro_batches[0],
        outside=[(1.0, Dense("tokens", opening)), (step_s, Constant())],
        frontend_ps=to_ps(frontend_s),
    )
    estimated: dict[str, str] = {}
    sides: list[AttentionSide | FFNSide] = [split.attention, *split.ffn]
    for side in sides:
        estimated |= {f"{side.cluster.name}: {k}": v for k, v in side.prices.estimated.items()}
    notes = {
        "estimated": estimated,
        "measured_to_tokens": pricing.most,
        "measured_to_sampled": pricing.most_sampled,
        "measured_to_tokens_of_all": pricing.most_of_all,
    }
    if split.loads is not None:
        notes |= {"expert_load": split.loads.said, "straggler": pricing.stragglers}
    return step_time, notes


def _kinds(model: ModelSpec) -> list[tuple[int, bool]]:
    """Window (0: none) of each layer, and whether it has experts."""
    moe = set(model.moe.layers) if model.moe else set()
    return [(window or 0, i in moe) for i, window in enumerate(model.windows)]
