"""The routed experts of an FFN cluster in one layer: what they take, and what is sent to them.

Under even loads every rank gets the same. Under drawn ones the layer waits for the rank that
takes longest, and a transfer for the one that gets most; both are means over the layers of a
draw, a curve for each draw. A token travels once to every rank that holds one of its
experts: to a share 1 - (1 - p)^k of the tokens of a rank with p of the token-expert pairs,
k experts a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.step_time.expert_baking import token_grid
from simulator.step_time.ffn_loads import Ranks, drawn_loads, received
from simulator.step_time.functions import Dense, Function, Shared
from simulator.step_time.layers import TOKENS, Call
from simulator.step_time.split import FFNSide, Split

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Routed:
    """Over the tokens of all attention ranks: ``seconds`` of the experts on the slowest rank,
    and ``fullest``, the tokens that come to the rank that gets most.

    ``copies`` is how many ranks of the cluster a token goes to, ``measured`` the most tokens
    that rest on kernels, ``straggler`` the slowest rank's time by the mean one's, at the most.
    """

    seconds: Function
    fullest: Function
    copies: float
    measured: int
    straggler: float = 1.0


def routed_experts(split: Split, ffn: FFNSide, most: int) -> Routed:
    """The experts of ``ffn`` up to ``most`` tokens. Raises ConfigError for a missing price."""
    return _drawn(split, ffn, most) if split.loads is not None else _even(split, ffn, most)


def experts_call(split: Split, ffn: FFNSide) -> Call:
    """The grouped GEMM of a rank."""
    model, engine = split.model, ffn.cluster.engine
    assert model.moe is not None
    whole = engine.enable_expert_parallel
    local = max(1, ffn.experts // ffn.ranks) if whole else ffn.experts
    shape = {
        "experts": model.moe.experts, "local_experts": local, "top_k": model.moe.top_k,
        "hidden": model.hidden, "inter": model.moe.inter,
        "tp": 1 if whole else engine.tensor_parallel_size, "ep": round(model.moe.experts / local),
    }  # fmt: skip
    return Call("grouped_gemm", "experts", TOKENS, shape)


def _even(split: Split, ffn: FFNSide, most: int) -> Routed:
    assert split.model.moe is not None
    call, tokens = experts_call(split, ffn), np.arange(1.0, most + 1)
    # tokens of all ranks at which an even load gives a rank as many pairs as it gets here
    alike = tokens * ffn.share / ffn.groups * call.shape["ep"]
    seconds, outside = ffn.prices.seconds(call, np.maximum(alike, 1.0))
    hit = 1.0 - (1.0 - ffn.share / ffn.groups) ** split.model.moe.top_k
    return Routed(
        Dense("engine_tokens", np.concatenate([[0.0], seconds])),
        Dense("engine_tokens", np.arange(most + 1.0) * hit),
        hit * ffn.groups,
        last_inside(outside),
    )


def _drawn(split: Split, ffn: FFNSide, most: int) -> Routed:
    """Replicas share the tokens out evenly, so that each sees a part of them."""
    model, replicas, engine = split.model, ffn.cluster.replicas, ffn.cluster.engine
    assert model.moe is not None
    assert split.loads is not None
    part = np.ones(model.moe.experts) if ffn.part is None else ffn.part
    ranks = Ranks(ffn.ranks, engine.enable_expert_parallel, part, engine.num_redundant_experts)
    sizes = token_grid(max(2, -(-most // replicas)))
    call, top_k = experts_call(split, ffn), model.moe.top_k
    seconds, fullest, measured, copies, straggler = [], [], 0, 0.0, 1.0
    for load in drawn_loads(split.loads, model, ranks, [int(n) for n in sizes]):
        found, outside = ffn.prices.experts(call, load.pairs, load.active)
        got = received(load, top_k)
        seconds.append(found.max(axis=-1).mean(axis=1))
        fullest.append(got.max(axis=-1).mean(axis=1))
        copies = float(got.sum(axis=-1).mean()) / load.tokens
        straggler = float((found.max(axis=-1) / found.mean(axis=-1)).mean())
        measured = measured if outside.any() else load.tokens * replicas
    grid = sizes * replicas
    return Routed(
        _curves(grid, seconds), _curves(grid, fullest), copies, measured, round(straggler, 3)
    )


def _curves(grid: Floats, values: list[Floats]) -> Shared:
    """A curve for each draw; from 1 token on, which the first point stands for."""
    if grid[0] > 1.0:
        grid, values = np.concatenate([[1.0], grid]), [values[0], *values]
    return Shared(grid, np.stack(values, axis=1))


def last_inside(outside: npt.NDArray[np.bool_]) -> int:
    """Of sizes 1, 2, 3, ... the last that is not outside, 0 if all are."""
    inside = np.flatnonzero(~outside)
    return int(inside[-1]) + 1 if len(inside) else 0
