"""Step times of a deployment from its operators, baked to dense tables.

    forward = by_tokens[pad(tokens)] + by_sampled[sampled] + sum over attention grids
              + experts, their exchange and the wait for the slowest rank (expert_baking.py)

``by_tokens`` adds up every operator whose size is the rank's tokens (projections, MLPs, norms;
collectives apart), padded to the CUDA graph's size where one is replayed; ``by_sampled`` those
of the rows that sample (lm_head, sampler). Several prefills in one batch count as one chunk
with as many query-key pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.clock import to_ps
from simulator.step_time.attention_grid import AttentionGrid
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.experts import ExpertTables
from simulator.step_time.functions import Attention, Constant, Dense, Function, Shared, UpTo
from traces.errors import TraceError

Floats = npt.NDArray[np.float64]
PARTS = ("exchange", "experts", "straggler")


@dataclass(slots=True)
class StepTables:
    """Baked tables of one deployed shape.

    ``by_tokens``, ``collectives``, ``hop`` (between two pipeline stages) and ``by_sampled`` are
    seconds at 0, 1, 2, ... tokens or rows; ``limits`` say of layers that were not measured up
    to there which feature of a step they depend on, and the largest that rests on measurements.
    Ranks that step together all run as many tokens as the fullest of them, if that has
    ``together`` at most.
    """

    by_tokens: Floats
    collectives: Floats
    hop: Floats
    by_sampled: Floats
    limits: dict[str, tuple[str, int]]
    together: int
    grids: list[AttentionGrid]
    layers: list[int]
    experts: ExpertTables | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def save_tables(tables: StepTables, path: Path) -> None:
    """Write tables as ``.npz``: arrays and one JSON text, nothing executable."""
    arrays: dict[str, npt.NDArray[Any]] = {
        "by_tokens": tables.by_tokens,
        "collectives": tables.collectives,
        "hop": tables.hop,
        "by_sampled": tables.by_sampled,
        "limits": np.array(json.dumps(tables.limits, sort_keys=True)),
        "together": np.array(tables.together),
        "layers": np.array(tables.layers),
        "notes": np.array(json.dumps(tables.notes, sort_keys=True)),
    }
    for i, grid in enumerate(tables.grids):
        arrays |= {f"axis{i}.{j}": axis for j, axis in enumerate(grid.axes)}
        arrays |= {f"seconds{i}": grid.seconds, f"spread{i}": grid.spread}
        arrays[f"limits{i}"] = np.array([grid.measured, grid.spread_most])
    if tables.experts is not None:
        experts = tables.experts
        arrays |= {"experts.grid": experts.grid, "experts.padded": experts.padded}
        arrays["experts.beside"] = experts.beside
        arrays |= {f"experts.{name}": part for name, part in experts.parts.items()}
        arrays["experts.most"] = np.array([experts.most, experts.layers])
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
            experts = None
            if "experts.grid" in found:
                parts = {name: found[f"experts.{name}"] for name in PARTS}
                most, with_experts = (int(n) for n in found["experts.most"])
                experts = ExpertTables(
                    found["experts.grid"], found["experts.padded"], parts, most, with_experts, {},
                    found["experts.beside"],
                )  # fmt: skip
            limits = json.loads(str(found["limits"]))
            return StepTables(
                found["by_tokens"], found["collectives"], found["hop"], found["by_sampled"],
                {layer: (str(name), int(most)) for layer, (name, most) in limits.items()},
                int(found["together"]), grids, layers, experts,
                json.loads(str(found["notes"])),
            )  # fmt: skip
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path}: not a baked table: {error}") from None


class OperatorStepTime(CompiledStepTime):
    """The step-time model of baked tables, with the constants of ``overhead.py``."""

    def __init__(
        self, tables: StepTables, *, step_s: float = 0.0, prompt_step_s: float = 0.0,
        slowdown: float = 0.0, frontend_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._tables = tables
        longer = 1.0 + slowdown
        forward: list[tuple[str, float, Function]] = [
            ("layers", longer, Dense("tokens", tables.by_tokens, tables.together, halves=True)),
            (
                "collectives",
                longer,
                Dense("tokens", tables.collectives, tables.together, halves=True),
            ),
            ("overhead", step_s, Constant()),
            ("overhead", prompt_step_s, UpTo("prefill_tokens", 1)),
        ]
        head = [(longer, Dense("sampled", tables.by_sampled))]
        hop = [(longer, Dense("tokens", tables.hop, tables.together))] * bool(tables.hop.any())
        for count, grid in zip(tables.layers, tables.grids, strict=True):
            attention = Attention(grid.axes, grid.seconds, grid.spread, grid.spread_most)
            forward.append(("attention", longer * count, attention))
        exchange: list[tuple[float, Function]] = []
        limits = dict(tables.limits)
        if (experts := tables.experts) is not None:
            limits["experts"] = ("engine_tokens", experts.most)
            curves = {
                name: Shared(experts.grid, experts.parts[name], experts.padded, experts.beside)
                for name in PARTS
            }
            exchange.append((longer, curves.pop("exchange")))
            forward += [(name, longer, function) for name, function in curves.items()]
        super().__init__(
            [(coefficient, function) for _, coefficient, function in forward],
            head=head,
            hop=hop,
            exchange=exchange,
            frontend_ps=to_ps(frontend_s),
            layers=limits,
            overlap=tables.experts.layers if tables.experts else 1,
            parts=[
                *(part for part, _, _ in forward),
                "sampling",
                *["collectives"] * len(hop + exchange),
            ],
        )

    def with_overhead(
        self, *, step_s: float = 0.0, prompt_step_s: float = 0.0, slowdown: float = 0.0,
        frontend_s: float = 0.0,
    ) -> OperatorStepTime:  # fmt: skip
        """The same tables with these constants; they may be negative only while fitted."""
        return OperatorStepTime(
            self._tables, step_s=step_s, prompt_step_s=prompt_step_s, slowdown=slowdown,
            frontend_s=max(frontend_s, 0.0),
        )  # fmt: skip
