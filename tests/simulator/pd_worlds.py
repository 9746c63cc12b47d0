"""Small disaggregated worlds: two clusters, a link, a step time computed by hand."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from worlds import Make, config, linear_step

from simulator.arrivals import ClosedLoop, OpenLoop
from simulator.deployment import Link
from simulator.disaggregation.connection import Connection, KVLayout
from simulator.disaggregation.setup import Side, demands
from simulator.disaggregation.simulation import PrefillDecode
from simulator.disaggregation.tables import requests_table, transfers_table
from simulator.records import Collected, Recorder
from simulator.scheduling import SchedulerConfig
from simulator.stage import Stage

BLOCK_BYTES = 1_000_000


def requests_of(*rows: tuple[float, int, int], **columns: list[Any]) -> pa.Table:
    """Requests from (arrival ms, prompt, output)."""
    at, prompts, outputs = zip(*rows, strict=True)
    ids = [f"r{i}" for i in range(len(rows))]
    times = {"arrival_s": [ms / 1000 for ms in at]}
    lengths = {"prompt_tokens": prompts, "output_tokens": outputs}
    return pa.table({"request_id": ids, **times, **lengths, **columns})


def link(**changes: Any) -> Link:
    """1 MB (a block of these worlds) a millisecond; ``changes`` override."""
    return Link(**({"from": "prefill", "to": "decode", "bandwidth_gb_s": 1.0} | changes))


def sides_of(how: dict[str, Any]) -> list[Side]:
    """The prefill and the decode side of a world, from what ``run_pd`` is given."""
    return [
        Side(name, how["replicas"][i], how[name], linear_step(how["frontend_ps"]),
             how["routers"][i], how["loads_late"])
        for i, name in enumerate(("prefill", "decode"))
    ]  # fmt: skip


def run_pd(
    requests: pa.Table,
    make: Make,
    *,
    prefill: SchedulerConfig | None = None,
    decode: SchedulerConfig | None = None,
    replicas: tuple[int, int] = (1, 1),
    routers: tuple[str, str] = ("round_robin", "round_robin"),
    hash_block_tokens: int | None = None,
    layout: KVLayout | None = None,
    skip_decode: bool = False,
    concurrency: int | None = None,
    proxy_ps: int = 0,
    loads_late: bool = False,
    frontend_ps: int = 0,
    **of_link: Any,
) -> tuple[PrefillDecode, dict[str, pa.Table]]:
    """Run to the end; steps are ordered by cluster, replica and step."""
    sides = sides_of(
        {
            "prefill": prefill or producer(), "decode": decode or consumer(), "replicas": replicas,
            "routers": routers, "frontend_ps": frontend_ps, "loads_late": loads_late,
        }
    )  # fmt: skip
    asked = demands(requests, sides[0], sides[1], hash_block_tokens, skip_decode=skip_decode)
    collected = Collected()
    stages = []
    for side, demand in zip(sides, asked, strict=True):
        recorder = Recorder(("steps", "step_requests"), side.name, demand, collected)
        fleet = make(demand, side.schedulers, side.model, recorder, loads_late=loads_late)
        stages.append(Stage(demand, side.router, fleet))
    connection = Connection(link(**of_link), layout or KVLayout(BLOCK_BYTES, 4, 1))
    simulation = PrefillDecode(stages[0], stages[1], connection, proxy_ps=proxy_ps)
    first = asked[0]
    simulation.run(OpenLoop(first) if concurrency is None else ClosedLoop(first, concurrency))
    simulation.check()
    order = [(name, "ascending") for name in ("cluster", "replica", "step")]
    steps = {name: table.sort_by(order) for name, table in collected.tables().items()}
    return simulation, {
        "requests": requests_table(simulation, "prefill"),
        "transfers": transfers_table(simulation, "prefill", "decode"),
        **steps,
    }


def producer(**changes: Any) -> SchedulerConfig:
    """A roomy prefill engine."""
    return config(kv_role="kv_producer", **changes)


def consumer(**changes: Any) -> SchedulerConfig:
    """A roomy decode engine."""
    return config(kv_role="kv_consumer", **changes)
