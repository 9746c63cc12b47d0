"""The experts of all layers in a step: grouped GEMMs, dispatch and combine, and the wait.

The GEMM of a layer ends on the rank that got the most; of a rank's time in a layer, what it
computes itself is ``experts`` and what it waits for that one ``straggler``. Both are drawn
(``simulator/moe``) beforehand: a curve over the tokens of all ranks for each draw, a draw
being the loads of all layers in one step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.deployment import Engine
from simulator.model import ModelSpec
from simulator.moe.laws import Drawn, Layers
from simulator.moe.loads import RankLoads, draw_loads
from simulator.step_time.experts import ExpertLoads, ExpertTables
from simulator.step_time.layers import ENGINE, Call, calls
from simulator.step_time.padding import padded_tokens
from simulator.step_time.prices import Prices

Floats = npt.NDArray[np.float64]

SHOWN = (1, 16, 256, 4096)  # tokens that the imbalance is noted at


def bake_experts(
    prices: Prices, model: ModelSpec, engine: Engine, loads: ExpertLoads
) -> ExpertTables | None:
    """Tables of a model's experts, None if it has none.

    Raises ConfigError for what cannot be priced, or if law and placement do not fit.
    """
    shared = [call for call in calls(model, engine) if call.rows == ENGINE]
    if not shared or model.moe is None:
        return None
    ranks = engine.data_parallel_size
    sizes, beside = token_grid(ranks * engine.max_num_batched_tokens), np.zeros(0)
    if isinstance(loads.law, Drawn) and loads.law.prompts.alike:
        sizes, beside = np.append(0.0, sizes), _decodes(engine)
    (gemm,) = (call for call in shared if call.family == "grouped_gemm")
    moe = Layers(model.moe_layers, model.moe.experts, model.moe.top_k)
    drawn = draw_loads(
        loads.law,
        loads.placement,
        moe,
        ranks=gemm.shape["ep"],
        redundant=engine.num_redundant_experts,
        steps=loads.draws,
        sizes=[int(n) for n in sizes],
        beside=[int(n) for n in beside],
    )
    columns: dict[str, list[Floats]] = {"exchange": [], "experts": [], "straggler": []}
    most, imbalance = 0, {}
    for load in drawn:
        nothing = dict.fromkeys(columns, np.zeros((1, 1))), True
        found, measured = _layer(prices, shared, load) if load.tokens else nothing
        for name, seconds in found.items():
            columns[name].append(seconds.mean(axis=1) * moe.layers)
        most = max(most, load.tokens) if measured else most
        if load.tokens in SHOWN:
            imbalance[str(load.tokens)] = round(load.imbalance(), 3)
    lines = {name: np.stack(np.broadcast_arrays(*part), axis=1) for name, part in columns.items()}
    if len(beside):  # draws, prompts and decodes: the prompts last
        shape = (-1, len(sizes), len(beside))
        lines = {name: part.reshape(shape).swapaxes(1, 2) for name, part in lines.items()}
    notes = {"expert_load": loads.said, "imbalance_at_tokens": imbalance}
    return ExpertTables(sizes, _padded(engine, ranks), lines, most, moe.layers, notes, beside)


def _layer(prices: Prices, shared: list[Call], load: RankLoads) -> tuple[dict[str, Floats], bool]:
    """Seconds in a layer, ``(draws, layers)``, and whether all rests on measurements."""
    found = dict.fromkeys(("exchange", "experts", "straggler"), np.zeros(load.pairs.shape[:2]))
    measured = True
    sent = any(call.family == "all_to_all" for call in shared)
    for call in shared:
        if call.family == "grouped_gemm":
            gathered = 0.0 if sent else float(load.tokens)
            seconds, outside = prices.experts(call, load.pairs, load.active, gathered)
            part = "experts"
        else:
            seconds, outside = prices.seconds(call, _received(call, load).ravel())
            seconds = seconds.reshape((*load.pairs.shape[:2], -1))
            part = "exchange"
        mean = seconds.mean(axis=-1)
        found[part] = found[part] + mean
        found["straggler"] = found["straggler"] + seconds.max(axis=-1) - mean
        measured &= not outside.any()
    return found, measured


def _received(call: Call, load: RankLoads) -> Floats:
    """Tokens whose bytes a rank's larger buffer holds, ``(draws, layers, ranks)``.

    All-gather and reduce-scatter move all tokens. In an all-to-all a token goes once to each
    rank that holds any of its ``top_k`` experts.
    """
    if call.family != "all_to_all":
        return np.full((*load.pairs.shape[:2], 1), float(load.tokens))
    top_k = call.shape["top_k"]
    share = np.minimum(load.pairs / (load.tokens * top_k), 1.0)
    hit: Floats = load.tokens * (1 - (1 - share) ** top_k)
    sent: Floats = hit.sum(axis=-1, keepdims=True) / call.shape["ranks"]
    return np.maximum(hit, sent)


def token_grid(most: int) -> Floats:
    """Ascending numbers of tokens from 1 to ``most``, two an octave."""
    octaves = np.arange(0.0, 2 * np.log2(max(most, 2)))
    return np.unique(np.append(np.rint(2 ** (octaves / 2)), max(most, 2)))


def _decodes(engine: Engine) -> Floats:
    """Ascending numbers of decodes of all ranks from 0, with those that fill up a graph."""
    most = max(engine.max_num_seqs, *engine.graph_sizes(), 1)
    return np.append(0.0, token_grid(engine.data_parallel_size * most))


def _padded(engine: Engine, ranks: int) -> Floats:
    sizes = engine.graph_sizes()
    return ranks * padded_tokens(engine, sizes[-1]).astype(float) if sizes else np.zeros(0)
