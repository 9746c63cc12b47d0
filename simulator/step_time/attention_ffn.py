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
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import to_ps
from simulator.deployment import Cluster, Link
from simulator.model import ModelSpec
from simulator.pipeline import Lanes, Pipeline, Stage, Strategy
from simulator.step_time.attention_grid import AttentionGrid
from simulator.step_time.functions import Attention, Dense
from simulator.step_time.layers import TOKENS, Call, Rows, stage_calls
from simulator.step_time.padding import padded_tokens
from simulator.step_time.pipelined import PipelinedStepTime, StageCost
from simulator.step_time.prices import Prices

Floats = npt.NDArray[np.float64]
ACTIVATION_BYTES = 2  # 16 bits
CHOICE_BYTES = 8  # an expert's number and share, with every token


@dataclass(slots=True)
class AttentionSide:
    """The attention cluster; ``grids`` has one attention table for each window of the model."""

    cluster: Cluster
    prices: Prices
    grids: Sequence[AttentionGrid]

    @property
    def schedulers(self) -> int:
        """Ranks with a batch of their own."""
        return self.cluster.replicas * self.cluster.engine.data_parallel_size

    @property
    def ports(self) -> int:
        """Devices, each with a port; those of a tensor-parallel group share the sending."""
        return self.schedulers * self.cluster.engine.tensor_parallel_size


@dataclass(slots=True)
class FFNSide:
    """An FFN cluster, the links to and from it, and its part of the experts.

    ``experts`` is how many it holds, ``share`` what part of all token-expert pairs it gets.
    """

    cluster: Cluster
    prices: Prices
    to: Link
    back: Link
    experts: int = 0
    share: float = 1.0

    @property
    def groups(self) -> int:
        """Ranks that take tokens of their own: with expert parallelism, every device."""
        engine = self.cluster.engine
        ranks = self.cluster.replicas * engine.data_parallel_size
        return ranks * (engine.tensor_parallel_size if engine.enable_expert_parallel else 1)

    @property
    def ports(self) -> int:
        """Devices."""
        engine = self.cluster.engine
        return self.cluster.replicas * engine.data_parallel_size * engine.tensor_parallel_size


@dataclass(slots=True)
class Split:
    """A pipelined deployment: what ``attention_ffn_step_time`` prices."""

    model: ModelSpec
    attention: AttentionSide
    ffn: Sequence[FFNSide]
    strategy: Strategy
    micro_batches: tuple[int, int]  # the least and the most; the best of them in each step
    one_device: bool = False


def attention_ffn_step_time(split: Split) -> tuple[PipelinedStepTime, dict[str, Any]]:
    """The step-time model, and what to note of its prices. Raises ConfigError if one is missing."""
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
    pricing = _Pricing(split)
    costs = [cost for i, kind in enumerate(names) for cost in pricing.layer(i, *kind)]
    costs += pricing.closing(len(names))
    opening = pricing.table(split.attention.prices, pricing.calls.opening, 1.0)
    step_time = PipelinedStepTime(
        costs,
        pipelines,
        least=split.micro_batches[0],
        outside=[(1.0, Dense("tokens", opening))],
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


class _Pricing:
    """Tables over the tokens of a micro-batch on one attention rank."""

    def __init__(self, split: Split) -> None:
        self.split = split
        engine = split.attention.cluster.engine
        self.sizes = np.arange(1.0, engine.max_num_batched_tokens + 1)
        self.calls = stage_calls(split.model, engine, split.ffn[0].cluster.engine)
        self.padded = padded_tokens(engine, len(self.sizes))
        self.most = len(self.sizes)  # tokens up to which every price rests on measurements
        self.windows = list(dict.fromkeys(window or 0 for window in split.model.windows))

    def layer(self, kind: int, window: int, moe: bool) -> list[StageCost]:
        """Every stage of a layer with this attention window, with experts or without."""
        side, calls = self.split.attention, self.calls
        operators = (*calls.attention, *(calls.gate if moe else ()))
        own = self.table(side.prices, operators, 1.0)
        grid = side.grids[self.windows.index(window)]
        kernel = Attention(grid.axes, grid.seconds, grid.spread, grid.spread_most)
        found = [StageCost("attention", kind, [(1.0, Dense("tokens", own)), (1.0, kernel)])]
        if self.split.strategy.shared and moe:
            apart = stage_calls(self.split.model, side.cluster.engine, side.cluster.engine).shared
            shared = self.table(side.prices, apart, 1.0)
            found.append(StageCost("shared", kind, [(1.0, Dense("tokens", shared))]))
        for lane, ffn in enumerate(self.split.ffn):
            if moe:
                seconds, hit = self._experts(ffn), self._hit(ffn)
            else:  # the first cluster has the dense layers
                seconds = self._evenly(ffn, calls.dense) if lane == 0 else 0.0 * self.sizes
                hit = float(lane == 0) / ffn.groups
            stages: tuple[tuple[Stage, Floats], ...] = (
                ("a2f", self._wire(ffn, ffn.to.bandwidth_gb_s, hit, CHOICE_BYTES * moe)),
                ("ffn", np.concatenate([[0.0], seconds])),
                ("f2a", self._wire(ffn, ffn.back.bandwidth_gb_s, hit, 0)),
            )
            for stage, table in stages:
                found.append(StageCost(stage, kind, [(1.0, Dense("tokens", table))], lane))
        return found

    def closing(self, kind: int) -> list[StageCost]:
        """Final norm, lm_head and sampling of each micro-batch."""
        prices = self.split.attention.prices
        norm = [call for call in self.calls.closing if call.rows == TOKENS]
        rest = [call for call in self.calls.closing if call.rows != TOKENS]
        rows = np.arange(1.0, self.split.attention.cluster.engine.max_num_seqs + 1)
        sampled = np.concatenate([[0.0], self._sum(prices, rest, rows)])
        seconds = [
            (1.0, Dense("tokens", self.table(prices, norm, 1.0))), (1.0, Dense("sampled", sampled)),
        ]  # fmt: skip
        return [StageCost("attention", kind, seconds)]

    def table(self, prices: Prices, calls: Sequence[Call], scale: float) -> Floats:
        """Seconds at 0, 1, ... tokens, padded as the attention ranks' CUDA graphs are."""
        table = np.concatenate([[0.0], self._sum(prices, calls, self.sizes * scale)])
        return table[self.padded]

    def _sum(self, prices: Prices, calls: Sequence[Call], rows: Floats) -> Floats:
        total = np.zeros(len(rows))
        for call in calls:
            seconds, outside = prices.seconds(call, np.maximum(rows, 1.0))
            total += seconds
            if call.rows == TOKENS and outside.any():
                inside = np.flatnonzero(~outside)
                self.most = min(self.most, int(inside[-1]) + 1 if len(inside) else 0)
        return total

    def _evenly(self, ffn: FFNSide, calls: Sequence[Call]) -> Floats:
        """Of operators that the cluster's tensor-parallel groups share out token by token."""
        engine = ffn.cluster.engine
        groups = ffn.cluster.replicas * engine.data_parallel_size
        return self._sum(ffn.prices, calls, self.sizes * self.split.attention.schedulers / groups)

    def _experts(self, ffn: FFNSide) -> Floats:
        """Routed experts of a rank, and its part of the shared one."""
        model, engine = self.split.model, ffn.cluster.engine
        assert model.moe is not None
        moe = model.moe
        ranks = ffn.groups // ffn.cluster.replicas
        whole = engine.enable_expert_parallel
        local = max(1, ffn.experts // ranks) if whole else ffn.experts
        ep = moe.experts // local
        shape = {
            "experts": moe.experts, "local_experts": local, "top_k": moe.top_k,
            "hidden": model.hidden, "inter": moe.inter,
            "tp": 1 if whole else engine.tensor_parallel_size, "ep": ep,
        }  # fmt: skip
        rows: Rows = TOKENS
        # tokens of all ranks at which an even load gives a rank as many pairs as it gets here
        alike = self.sizes * self.split.attention.schedulers * ffn.share / ffn.groups * ep
        seconds = self._sum(ffn.prices, [Call("grouped_gemm", "experts", rows, shape)], alike)
        if moe.shared_inter and not self.split.strategy.shared and ffn is self.split.ffn[0]:
            seconds = seconds + self._evenly(ffn, self.calls.shared)
        if not whole and engine.tensor_parallel_size > 1:
            reduce = [call for call in self.calls.dense if call.family == "all_reduce"]
            seconds = seconds + self._evenly(ffn, reduce)
        return seconds

    def _hit(self, ffn: FFNSide) -> float:
        """Share of all tokens that a rank of the cluster gets."""
        assert self.split.model.moe is not None
        return float(1.0 - (1.0 - ffn.share / ffn.groups) ** self.split.model.moe.top_k)

    def _wire(self, ffn: FFNSide, gb_s: float, hit: float, choice_bytes: int) -> Floats:
        """Seconds of a transfer at 0, 1, ... tokens: the busier of a port on either side."""
        model = self.split.model
        top_k = model.moe.top_k if model.moe else 0
        size = model.hidden * ACTIVATION_BYTES + choice_bytes * top_k
        tokens = np.concatenate([[0.0], self.sizes]) * self.split.attention.schedulers
        into = tokens * hit * ffn.groups / ffn.ports
        out = tokens * hit * ffn.groups / self.split.attention.ports
        wire: Floats = np.maximum(into, out) * size / (gb_s * 1e9)
        return wire
