"""Small worlds for simulator tests: a step time that can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.arrivals import Arrivals, OpenLoop
from simulator.clock import PS_PER_S
from simulator.records import Recorder
from simulator.routing import create_router
from simulator.scheduling import Request, SchedulerConfig
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


def requests_at(*rows: tuple[float, int, int], groups: int = 1) -> list[Request]:
    """Requests from (arrival ms, prompt, output) with hashes of their own."""
    return [
        Request(
            i, prompt, output, name=f"r{i}", arrival_ps=round(ms * MS), groups=groups,
            hashes=[(i << 20) + j for j in range((prompt + output) // 4)],
        )
        for i, (ms, prompt, output) in enumerate(rows)
    ]  # fmt: skip


def simulate(
    requests: Sequence[Request],
    settings: SchedulerConfig,
    *,
    replicas: int = 1,
    router: str = "round_robin",
    arrivals: Arrivals | None = None,
) -> Recorder:
    """Run a world to its end and return what was recorded."""
    recorder = Recorder(("steps", "step_requests"), "main")
    world = Simulation(
        create_router(router), lambda: Scheduler(settings), LinearStep(), replicas, recorder
    )
    world.run(arrivals or OpenLoop(requests))
    return recorder
