"""What the stages of a layer cost where attention and FFN are clusters of their own.

What attention ranks do is a table over the tokens of a micro-batch on the rank, what FFN ranks
do one over those on all attention ranks. A transfer lasts as long as the rank's own port or
the busiest one of the FFN ranks has to send or take.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simulator.pipeline import Stage
from simulator.step_time.functions import Attention, Dense, Function
from simulator.step_time.layers import SAMPLED, TOKENS, Call, stage_calls
from simulator.step_time.padding import padded_tokens
from simulator.step_time.pipelined import StageCost
from simulator.step_time.prices import Prices
from simulator.step_time.routed_experts import Routed, last_inside, routed_experts
from simulator.step_time.split import FFNSide, Split

Floats = npt.NDArray[np.float64]
ACTIVATION_BYTES = 2  # 16 bits
CHOICE_BYTES = 8  # an expert's number and share, with every token


class StagePrices:
    """Prices the stages of a split.

    ``most`` are the tokens of a rank, ``most_sampled`` its sampled ones, and ``most_of_all`` the
    tokens of all attention ranks, up to which all rests on kernels. ``stragglers`` says by FFN
    cluster how much longer the slowest of its ranks takes for the experts than the mean one.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        engine = split.attention.cluster.engine
        self.sizes = np.arange(1.0, engine.max_num_batched_tokens + 1)
        self.of_all = np.arange(1.0, len(self.sizes) * split.attention.schedulers + 1)
        self.calls = stage_calls(split.model, engine, split.ffn[0].cluster.engine)
        self.padded = padded_tokens(engine, len(self.sizes))
        self.most, self.most_of_all = len(self.sizes), len(self.of_all)
        self.most_sampled = engine.max_num_seqs
        self.stragglers: dict[str, float] = {}
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
            found += self._with_experts(kind, lane, ffn) if moe else self._dense(kind, lane, ffn)
        return found

    def closing(self, kind: int) -> list[StageCost]:
        """Final norm, lm_head and sampling of each micro-batch."""
        prices = self.split.attention.prices
        norm = [call for call in self.calls.closing if call.rows == TOKENS]
        rest = [call for call in self.calls.closing if call.rows != TOKENS]
        rows = np.arange(1.0, self.split.attention.cluster.engine.max_num_seqs + 1)
        sampled, self.most_sampled = self._sum(prices, rest, rows)
        seconds = [
            (1.0, Dense("tokens", self.table(prices, norm))),
            (1.0, Dense("sampled", np.concatenate([[0.0], sampled]))),
        ]
        return [StageCost("attention", kind, seconds)]

    def table(self, prices: Prices, calls: Sequence[Call]) -> Floats:
        """Seconds at 0, 1, ... tokens, padded as the attention ranks' CUDA graphs are."""
        seconds, most = self._sum(prices, calls, self.sizes)
        self.most = min(self.most, most)
        return np.concatenate([[0.0], seconds])[self.padded]

    def _dense(self, kind: int, lane: int, ffn: FFNSide) -> list[StageCost]:
        """A layer without experts, which the first cluster has; the others have no part in it."""
        table = self._evenly(ffn, self.calls.dense) if lane == 0 else np.zeros(len(self.of_all) + 1)
        copies = float(lane == 0)
        fullest = Dense("engine_tokens", np.arange(len(self.of_all) + 1.0) * copies / ffn.groups)
        return [
            StageCost("ffn", kind, [(1.0, Dense("engine_tokens", table))], lane),
            *self._wire("a2f", kind, lane, fullest, copies, 0),
            *self._wire("f2a", kind, lane, fullest, copies, 0),
        ]

    def _with_experts(self, kind: int, lane: int, ffn: FFNSide) -> list[StageCost]:
        """Routed experts, and the shared one, which the first cluster has."""
        model, engine = self.split.model, ffn.cluster.engine
        assert model.moe is not None
        routed = self._routed_of(ffn)
        beside: list[Call] = []
        if model.moe.shared_inter and not self.split.strategy.shared and lane == 0:
            beside += self.calls.shared
        if not engine.enable_expert_parallel and engine.tensor_parallel_size > 1:
            beside += [call for call in self.calls.dense if call.family == "all_reduce"]
        seconds: list[tuple[float, Function]] = [(1.0, routed.seconds)]
        if beside:
            seconds.append((1.0, Dense("engine_tokens", self._evenly(ffn, beside))))
        choices = CHOICE_BYTES * model.moe.top_k
        return [
            StageCost("ffn", kind, seconds, lane),
            *self._wire("a2f", kind, lane, routed.fullest, routed.copies, choices),
            *self._wire("f2a", kind, lane, routed.fullest, routed.copies, 0),
        ]

    def _routed_of(self, ffn: FFNSide) -> Routed:
        """Priced once for all kinds of layers, and whatever the links are."""
        name, known = ffn.cluster.name, self.split.routed
        if name not in known:
            known[name] = routed_experts(self.split, ffn, len(self.of_all))
        self.most_of_all = min(self.most_of_all, known[name].measured)
        self.stragglers[name] = known[name].straggler
        return known[name]

    def _evenly(self, ffn: FFNSide, calls: Sequence[Call]) -> Floats:
        """Of operators that the cluster's tensor-parallel groups share out token by token."""
        groups = ffn.cluster.replicas * ffn.cluster.engine.data_parallel_size
        seconds, most = self._sum(ffn.prices, calls, self.of_all / groups)
        self.most_of_all = min(self.most_of_all, most)
        return np.concatenate([[0.0], seconds])

    def _sum(self, prices: Prices, calls: Sequence[Call], rows: Floats) -> tuple[Floats, int]:
        """Seconds of all ``calls``, and how many of ``rows`` rest on measurements."""
        total, most = np.zeros(len(rows)), len(rows)
        for call in calls:
            seconds, outside = prices.seconds(call, np.maximum(rows, 1.0))
            total += seconds
            if call.rows in (TOKENS, SAMPLED):
                most = min(most, last_inside(outside))
        return total, most

    def _wire(
        self, stage: Stage, kind: int, lane: int, fullest: Function, copies: float, choices: int
    ) -> list[StageCost]:
        """A transfer: ``fullest`` tokens through an FFN rank's port, or its own copies."""
        ffn, tp = self.split.ffn[lane], self.split.attention.cluster.engine.tensor_parallel_size
        gb_s = (ffn.to if stage == "a2f" else ffn.back).bandwidth_gb_s
        token_s = (self.split.model.hidden * ACTIVATION_BYTES + choices) / (gb_s * 1e9)
        own = Dense("tokens", np.arange(len(self.sizes) + 1.0) * (copies / tp * token_s))
        busiest = token_s * ffn.groups / ffn.ports
        return [
            StageCost(stage, kind, [(busiest, fullest)], lane),
            StageCost(stage, kind, [(1.0, own)], lane, beside=True),
        ]
