"""Step times of a deployment from its operators, baked to dense tables.

    forward = by_tokens[pad(tokens)] + by_sampled[sampled] + sum over attention grids

``by_tokens`` adds up every operator whose size is the step's tokens (projections, MLPs,
experts, norms, collectives of all layers), padded to the CUDA graph's size where one is
replayed; ``by_sampled`` those of the rows that sample (lm_head, sampler). Several prefills in
one batch count as one chunk with as many query-key pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import to_ps
from simulator.deployment import Engine
from simulator.model import ModelSpec
from simulator.step_time.attention_grid import AttentionGrid, measured_grid
from simulator.step_time.attention_predicted import predicted_grid
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.functions import Attention, Constant, Dense, Function
from simulator.step_time.layers import SAMPLED, TOKENS, attention_calls, calls
from simulator.step_time.prices import Prices
from simulator.step_time.select_kernels import where
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]

MODULE = (  # what kernels of an ``mla_module`` hold beside the attention itself
    "q_proj", "kv_a_proj", "fused_qkv_a_proj", "q_b_proj", "o_proj", "rotary_emb", "kv_write",
)  # fmt: skip


@dataclass(slots=True)
class StepTables:
    """Baked tables of one deployed shape.

    ``by_tokens`` and ``by_sampled`` are seconds at 0, 1, 2, ... tokens or rows;
    ``tokens_most`` and ``sampled_most`` the largest that rest on measurements.
    """

    by_tokens: Floats
    by_sampled: Floats
    tokens_most: int
    sampled_most: int
    grids: list[AttentionGrid]
    layers: list[int]
    notes: dict[str, Any] = field(default_factory=dict)


def save_tables(tables: StepTables, path: Path) -> None:
    """Write tables as ``.npz``: arrays and one JSON text, nothing executable."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "by_tokens": tables.by_tokens,
        "by_sampled": tables.by_sampled,
        "most": np.array([tables.tokens_most, tables.sampled_most]),
        "layers": np.array(tables.layers),
        "notes": np.array(json.dumps(tables.notes, sort_keys=True)),
    }
    for i, grid in enumerate(tables.grids):
        arrays |= {f"axis{i}.{j}": axis for j, axis in enumerate(grid.axes)}
        arrays |= {f"seconds{i}": grid.seconds, f"spread{i}": grid.spread}
        arrays[f"limits{i}"] = np.array([grid.measured, grid.spread_most])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_tables(path: Path) -> StepTables:
    """Read what ``save_tables`` wrote. Raises TraceError."""
    try:
        with np.load(path, allow_pickle=False) as found:
            layers = [int(n) for n in found["layers"]]
            grids = []
            for i in range(len(layers)):
                first, second, third, fourth = (found[f"axis{i}.{j}"] for j in range(4))
                measured, most = found[f"limits{i}"].tolist()
                axes = (first, second, third, fourth)
                grid = AttentionGrid(
                    axes, found[f"seconds{i}"], measured, found[f"spread{i}"], most
                )
                grids.append(grid)
            tokens_most, sampled_most = (int(n) for n in found["most"])
            return StepTables(
                found["by_tokens"], found["by_sampled"], tokens_most, sampled_most, grids, layers,
                json.loads(str(found["notes"])),
            )  # fmt: skip
    except (OSError, KeyError, ValueError) as error:
        raise TraceError(f"{path}: not a baked table: {error}") from None


def bake(prices: Prices, model: ModelSpec, engine: Engine) -> StepTables:
    """Price every operator of a step at every size. Raises ConfigError for what is missing."""
    tokens = np.arange(1.0, engine.max_num_batched_tokens + 1)
    sampled = np.arange(1.0, engine.max_num_seqs + 1)
    by_tokens, tokens_most = _summed(prices, model, engine, TOKENS, tokens)
    by_sampled, sampled_most = _summed(prices, model, engine, SAMPLED, sampled)
    padded = padded_tokens(engine, len(tokens))
    attention = attention_calls(model, engine.tensor_parallel_size)
    return StepTables(
        by_tokens[padded],
        by_sampled,
        tokens_most,
        sampled_most,
        [
            measured_grid(prices.kernels, call)
            or predicted_grid(prices.unmeasured, prices.types, call, model, engine)
            for call in attention
        ],
        [call.count for call in attention],
        {"estimated": dict(prices.estimated), "fitted": dict(prices.unmeasured.used)},
    )


def _summed(
    prices: Prices, model: ModelSpec, engine: Engine, rows: str, sizes: Floats
) -> tuple[Floats, int]:
    """Seconds of all operators that grow with ``rows``, at 0 and each of ``sizes``."""
    total, known = np.zeros(len(sizes)), np.ones(len(sizes), bool)
    inside = MODULE if model.mla is not None and _whole_module(prices) else ()
    for call in calls(model, engine):
        if call.rows == rows and call.layer not in inside:
            seconds, outside = prices.seconds(call, sizes)
            total += call.count * seconds
            known &= ~outside
    most = int(sizes[known][-1]) if known.any() else 0
    return np.concatenate([[0.0], total]), most


def _whole_module(prices: Prices) -> bool:
    """Whether latent attention was measured with its projections."""
    return bool(len(where(prices.kernels, {"operator": "mla_decode", "layer": "mla_module"})))


def padded_tokens(engine: Engine, most: int) -> npt.NDArray[np.int64]:
    """Tokens the forward runs on for 0..``most`` scheduled: the next CUDA graph size, if any.

    vLLM's ``cudagraph_dispatcher``: a batch larger than the largest graph runs as it is.
    """
    padded = np.arange(most + 1)
    sizes = np.array(sorted(engine.graph_sizes()), np.int64)
    if len(sizes):
        inside = padded <= sizes[-1]
        padded[inside] = sizes[np.searchsorted(sizes, padded[inside])]
        padded[0] = 0
    return np.minimum(padded, most)


class OperatorStepTime(CompiledStepTime):
    """The step-time model of baked tables; ``step_s`` is added to every forward."""

    def __init__(self, tables: StepTables, *, step_s: float = 0.0, frontend_s: float = 0.0) -> None:
        self._tables = tables
        forward: list[tuple[float, Function]] = [
            (1.0, Dense("tokens", tables.by_tokens)),
            (1.0, Dense("sampled", tables.by_sampled)),
            (step_s, Constant()),
        ]
        for count, grid in zip(tables.layers, tables.grids, strict=True):
            attention = Attention(grid.axes, grid.seconds, grid.spread, grid.spread_most)
            forward.append((float(count), attention))
        super().__init__(
            forward,
            frontend_ps=to_ps(frontend_s),
            ranges={"tokens": tables.tokens_most, "sampled": tables.sampled_most},
        )

    def with_overhead(self, step_s: float, frontend_s: float) -> OperatorStepTime:
        """The same tables with these constants; they may be negative only while fitted."""
        return OperatorStepTime(self._tables, step_s=step_s, frontend_s=max(frontend_s, 0.0))
