"""Small worlds for simulator tests: a step time that can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from simulator.arrivals import ClosedLoop, OpenLoop
from simulator.clock import PS_PER_S
from simulator.demand import Demand
from simulator.fleet import CompiledFleet, PlainFleet
from simulator.records import Collected, Recorder, requests_table
from simulator.scheduling import SchedulerConfig
from simulator.simulation import Simulation
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.functions import Constant, Dense, Linear, Shared

MS = PS_PER_S // 1000
Make = Callable[..., CompiledFleet | PlainFleet]
Columns = dict[str, list[Any]]


def linear_step(frontend_ps: int = 0) -> CompiledStepTime:
    """10 ms a step and 1 ms a token, of which 1 ms is the host's; 2 ms between steps.

    Between the stages of a pipeline lies 1 ms.
    """
    return CompiledStepTime(
        forward=[(9e-3, Constant()), (1e-3, Linear("tokens"))],
        host=[(1e-3, Constant())],
        gap=[(2e-3, Constant())],
        hop=[(1e-3, Constant())],
        frontend_ps=frontend_ps,
    )


def shared_step() -> CompiledStepTime:
    """5 ms a step, 2 ms a token of the rank and 1 ms a token of its engine; host by rows."""
    return CompiledStepTime(
        forward=[(5e-3, Constant()), (2e-3, Linear("tokens")), (1e-3, Linear("engine_tokens"))],
        host=[(1e-3, Linear("rows"))],
        gap=[(1e-3, Linear("sampled"))],
    )


def halving_step() -> CompiledStepTime:
    """``shared_step`` with an exchange of 1 ms a token of the engine, in two layers."""
    return CompiledStepTime(
        forward=[
            (5e-3, Constant()),
            (2e-3, Dense("tokens", [float(n) for n in range(999)], halves=True)),
        ],
        host=[(1e-3, Linear("rows"))],
        gap=[(1e-3, Linear("sampled"))],
        exchange=[(1e-3, Shared([1, 999], [[1, 999], [3, 1001]]))],
        overlap=2,
    )


def config(**changes: object) -> SchedulerConfig:
    """A roomy engine; ``changes`` override."""
    settings: dict[str, object] = {
        "num_gpu_blocks": 100, "block_size": 4, "max_num_batched_tokens": 16, "max_num_seqs": 4,
        "max_model_len": 200, "enable_prefix_caching": False,
    }  # fmt: skip
    return SchedulerConfig(**(settings | changes))  # type: ignore[arg-type]


def demand_of(*rows: tuple[float, int, int], settings: SchedulerConfig) -> Demand:
    """A demand from (arrival ms, prompt, output)."""
    table = pa.table(
        {
            "request_id": [f"r{i}" for i in range(len(rows))],
            "arrival_s": [ms / 1000 for ms, _, _ in rows],
            "prompt_tokens": [prompt for _, prompt, _ in rows],
            "output_tokens": [output for _, _, output in rows],
        }
    )
    return Demand(table, settings)


def run_demand(
    demand: Demand,
    make: Make,
    *,
    replicas: int = 1,
    router: str = "round_robin",
    concurrency: int | None = None,
    model: CompiledStepTime | None = None,
) -> dict[str, pa.Table]:
    """Run a demand to its end; returns its tables, steps ordered by replica and step."""
    collected = Collected()
    recorder = Recorder(("steps", "step_requests"), "main", demand, collected)
    fleet = make(demand, replicas, model or linear_step(), recorder)
    Simulation(demand, router, fleet).run(
        OpenLoop(demand) if concurrency is None else ClosedLoop(demand, concurrency)
    )
    fleet.check()
    order = [(name, "ascending") for name in ("replica", "step")]
    steps = {name: table.sort_by(order) for name, table in collected.tables().items()}
    return {"requests": requests_table(demand, "main"), **steps}


def simulate(
    *rows: tuple[float, int, int], settings: SchedulerConfig, make: Make = PlainFleet, **how: Any
) -> dict[str, Columns]:
    """Run a world to its end; returns its tables as columns."""
    tables = run_demand(demand_of(*rows, settings=settings), make, **how)
    return {name: table.to_pydict() for name, table in tables.items()}


def in_ms(seconds: list[float]) -> list[float]:
    """Milliseconds, rounded to the nanosecond."""
    return [round(s * 1000, 6) for s in seconds]
