"""What a grouped GEMM costs on a rank by the load it got, from measured kernels.

A kernel was measured for so many pairs (tokens times experts picked on the rank) and so
many active experts; both decide: pairs are multiplied, the weights of active experts are
read. Where active experts were not recorded they are the expected ones of an even load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulator.step_time.layers import Call

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ONE_LEVEL = 0.02  # pairs that differ by less were measured together


@dataclass(frozen=True, slots=True)
class ExpertPrices:
    """Seconds over pairs, ascending, and at each number of pairs over active experts.

    ``ranks`` is the number of expert-parallel ranks that the kernels were measured for.
    """

    pairs: Floats
    levels: tuple[tuple[Floats, Floats], ...]  # active experts, ascending, and seconds
    ranks: int = 1

    def at(self, pairs: Floats, active: Floats) -> tuple[Floats, Flags]:
        """Seconds of each load, and which lie outside what was measured.

        Logarithmic in pairs, and in proportion beyond the most; linear in active experts.
        """
        inner = np.clip(pairs, self.pairs[0], self.pairs[-1])
        low = np.clip(np.searchsorted(self.pairs, inner, side="right") - 1, 0, len(self.pairs) - 2)
        share = np.log(inner / self.pairs[low]) / np.log(self.pairs[low + 1] / self.pairs[low])
        below, above = np.empty(pairs.shape), np.empty(pairs.shape)
        for i, (experts, seconds) in enumerate(self.levels):
            for part, where in ((below, low == i), (above, low + 1 == i)):
                part[where] = np.interp(active[where], experts, seconds)
        found = np.exp((1 - share) * np.log(below) + share * np.log(above))
        outside = (pairs > self.pairs[-1]) | (pairs < self.pairs[0])
        return np.where(pairs > self.pairs[-1], found * pairs / self.pairs[-1], found), outside


def expert_prices(kernels: pa.Table, call: Call) -> ExpertPrices | None:
    """Prices of one shape of experts, None if it was not measured.

    Rows of the same expert width count, whatever number of ranks they were measured for:
    what a rank computes depends on the pairs it got. Rows of the call's own number of ranks
    are preferred.
    """
    frame = kernels.to_pandas()
    if "top_k" not in frame or "inter" not in frame:
        return None
    tp = frame["tp"].fillna(1) if "tp" in frame else 1.0
    width = frame["inter"] / tp == call.shape["inter"] / call.shape["tp"]
    frame = frame[
        (frame["operator"] == "grouped_gemm")
        & width
        & (frame["hidden"] == call.shape["hidden"])
        & (frame["experts"] == call.shape["experts"])
        & (frame["top_k"] == call.shape["top_k"])
    ]
    ep = frame["ep"].fillna(1) if "ep" in frame else frame["top_k"] * 0 + 1
    if (ep == call.shape["ep"]).any():
        frame, ep = frame[ep == call.shape["ep"]], ep[ep == call.shape["ep"]]
    else:
        frame, ep = frame[ep == ep.min()], ep[ep == ep.min()]
    if "load" in frame and (even := frame["load"].isin(["balanced", "uniform"])).any():
        frame, ep = frame[even], ep[even]
    if frame.empty:
        return None
    tokens, top_k, experts = (frame[n].to_numpy(float) for n in ("tokens", "top_k", "experts"))
    expected = experts / ep.to_numpy(float) * (1 - (1 - top_k / experts) ** tokens)
    pairs, active = tokens * top_k / ep.to_numpy(float), expected
    if "routed_tokens" in frame:
        pairs = frame["routed_tokens"].fillna(np.nan).to_numpy(float, copy=True)
        pairs = np.where(np.isnan(pairs), tokens * top_k / ep.to_numpy(float), pairs)
    if "active_experts" in frame:
        given = frame["active_experts"].to_numpy(float)
        active = np.where(np.isnan(given), expected, given)
    return _surface(pairs, active, frame["duration_s"].to_numpy(float), int(ep.iloc[0]))


def passed_over(call: Call, pairs: Floats, tokens: float, measured_ranks: int) -> Floats:
    """Bytes moved for pairs of other ranks' experts, beyond those in a kernel's measured time.

    Where every rank has the tokens of all (all-gather), vLLM's Triton kernels write zeros for a
    pair whose expert is elsewhere, and the activation and the sum over a token's experts read
    them (``fused_moe.py: write_zeros_to_output``): 10 bytes an intermediate element and 4 a
    hidden one. Memory alone is a lower bound: such a pair takes 16 and 63 ns on H200 where this
    says 9 and 21, 19 and 70 on H100 where it says 13 and 31 (aiconfigurator's bfloat16 tables of
    vLLM 0.24, hidden 6144 and 5120, inter 2048 and 8192, EP 1 or 2 against 16 to 128 ranks at
    equal local shape).
    """
    elsewhere = np.maximum(tokens * call.shape["top_k"] - pairs * measured_ranks, 0.0)
    inter = call.shape["inter"] / call.shape["tp"]
    moved: Floats = elsewhere * (10 * inter + 4 * call.shape["hidden"])
    return moved


def _surface(pairs: Floats, active: Floats, seconds: Floats, ranks: int) -> ExpertPrices | None:
    order = np.lexsort((active, pairs))
    pairs, active, seconds = pairs[order], active[order], seconds[order]
    ends = np.flatnonzero(np.diff(np.log(pairs)) > ONE_LEVEL) + 1
    levels, at = [], []
    for part in np.split(np.arange(len(pairs)), ends):
        experts = np.unique(active[part])
        means = [float(seconds[part][active[part] == e].mean()) for e in experts]
        levels.append((experts, np.array(means)))
        at.append(float(pairs[part].mean()))
    return ExpertPrices(np.array(at), tuple(levels), ranks) if len(at) > 1 else None
