"""What the stages of a layer cost where attention and FFN are clusters of their own.

Everything is a table over the tokens of a micro-batch on one attention rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.deployment import Cluster, Link
from simulator.model import ModelSpec
from simulator.pipeline import Stage, Strategy
from simulator.step_time.attention_grid import AttentionGrid
from simulator.step_time.functions import Attention, Dense
from simulator.step_time.layers import TOKENS, Call, Rows, stage_calls
from simulator.step_time.padding import padded_tokens
from simulator.step_time.pipelined import StageCost
from simulator.step_time.prices import Prices

Floats = npt.NDArray[np.float64]
ACTIVATION_BYTES = 2  # 16 bits
CHOICE_BYTES = 8  # an expert's number and share, with every token


@dataclass(slots=True)
class AttentionSide:
    """The attention cluster; ``grids`` has one attention table for each window of the model.

    ``inside`` are the layers whose time those tables include already.
    """

    cluster: Cluster
    prices: Prices
    grids: Sequence[AttentionGrid]
    inside: Sequence[str] = ()

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


class StagePrices:
    """Prices the stages of a split; ``most`` are the tokens up to which all rests on kernels."""

    def __init__(self, split: Split) -> None:
        self.split = split
        engine = split.attention.cluster.engine
        self.sizes = np.arange(1.0, engine.max_num_batched_tokens + 1)
        self.calls = stage_calls(split.model, engine, split.ffn[0].cluster.engine)
        self.padded = padded_tokens(engine, len(self.sizes))
        self.most = len(self.sizes)
        self.windows = list(dict.fromkeys(window or 0 for window in split.model.windows))

    def layer(self, kind: int, window: int, moe: bool) -> list[StageCost]:
        """Every stage of a layer with this attention window, with experts or without."""
        side, calls = self.split.attention, self.calls
        operators = (*calls.attention, *(calls.gate if moe else ()))
        apart = [call for call in operators if call.layer not in side.inside]
        own = self.table(side.prices, apart)
        grid = side.grids[self.windows.index(window)]
        kernel = Attention(grid.axes, grid.seconds, grid.spread, grid.spread_most)
        found = [StageCost("attention", kind, [(1.0, Dense("tokens", own)), (1.0, kernel)])]
        if self.split.strategy.shared and moe:
            here = stage_calls(self.split.model, side.cluster.engine, side.cluster.engine)
            shared = self.table(side.prices, here.shared)
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
            (1.0, Dense("tokens", self.table(prices, norm))), (1.0, Dense("sampled", sampled)),
        ]  # fmt: skip
        return [StageCost("attention", kind, seconds)]

    def table(self, prices: Prices, calls: Sequence[Call]) -> Floats:
        """Seconds at 0, 1, ... tokens, padded as the attention ranks' CUDA graphs are."""
        table = np.concatenate([[0.0], self._sum(prices, calls, self.sizes)])
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
        """Routed experts of a rank, and its part of the shared one, which the first cluster has."""
        model, engine = self.split.model, ffn.cluster.engine
        assert model.moe is not None
        moe = model.moe
        ranks = ffn.groups // ffn.cluster.replicas
        whole = engine.enable_expert_parallel
        local = max(1, ffn.experts // ranks) if whole else ffn.experts
        ep = round(moe.experts / local)
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
