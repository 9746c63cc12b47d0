"""Small worlds for simulator tests: a step time that can be computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from simulator.arrivals import ClosedLoop, OpenLoop
from simulator.clock import PS_PER_S
from simulator.demand import Demand
from simulator.records import Recorder, requests_table
from simulator.scheduling import SchedulerConfig
from simulator.scheduling.reference import Scheduler
from simulator.simulation import Simulation
from simulator.step_time.base import BatchShape, StepTimes

MS = PS_PER_S // 1000


class LinearStep:
    """10 ms a step and 1 ms a token, of which 1 ms is the host's; 2 ms between steps."""

    frontend_ps = 0

    def times(self, shape: BatchShape) -> StepTimes:
        return StepTimes(forward=(9 + shape.tokens) * MS, host=MS, gap=2 * MS)

    def coverage(self) -> dict[str, int]:
        return {"steps": 0, "extrapolated": 0}


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


def simulate(
    *rows: tuple[float, int, int],
    settings: SchedulerConfig,
    replicas: int = 1,
    router: str = "round_robin",
    concurrency: int | None = None,
    make: Callable[[SchedulerConfig], Scheduler] = Scheduler,
) -> dict[str, dict[str, list[Any]]]:
    """Run a world to its end; returns its tables as columns."""
    demand = demand_of(*rows, settings=settings)
    recorder = Recorder(("steps", "step_requests"), "main", demand)
    world = Simulation(
        demand, router, replicas, lambda: make(settings), LinearStep(), on_step=recorder.on_step
    )
    world.run(OpenLoop(demand) if concurrency is None else ClosedLoop(demand, concurrency))
    for replica in world.replicas:
        replica.scheduler.check([])
    tables = {"requests": requests_table(demand, "main"), **recorder.tables()}
    return {name: table.to_pydict() for name, table in tables.items()}


def in_ms(seconds: list[float]) -> list[float]:
    """Milliseconds, rounded to the nanosecond."""
    return [round(s * 1000, 6) for s in seconds]
