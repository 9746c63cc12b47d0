"""A plan and a workload as a simulation that can be run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from replay.plan import ClusterPlan, Plan
from simulator.clock import PS_PER_S
from simulator.demand import Demand
from simulator.deployment import Deployment, Link
from simulator.disaggregation.connection import Connection, kv_layout
from simulator.disaggregation.setup import Side, demands
from simulator.disaggregation.simulation import PrefillDecode
from simulator.disaggregation.tables import requests_table as handed_over_table
from simulator.disaggregation.tables import transfers_table
from simulator.fleet import make_fleet
from simulator.records import Recorder, Sink, requests_table
from simulator.simulation import Simulation
from simulator.stage import Stage
from simulator.step_time.base import StepTimeModel
from traces.digest import text_digest
from traces.errors import ConfigError
from traces.workload import Workload

# the step-time model of a cluster, and what to note of it
Models = Callable[[ClusterPlan], tuple[StepTimeModel, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A simulation, the demand that arrives, and what to make of it in the end.

    ``deployment`` is the one simulated.
    """

    deployment: Deployment
    simulation: Simulation | PrefillDecode
    demand: Demand
    tables: Callable[[], dict[str, pa.Table]]
    notes: Callable[[], dict[str, Any]]


def prepare_colocated(
    workload: Workload,
    plan: Plan,
    models: Models,
    record: Sequence[str],
    sink: Sink,
    progress: Callable[[int], None],
) -> Prepared:
    """One cluster. Raises ConfigError."""
    part = plan.only
    name = part.cluster.name
    model, operators = models(part)
    demand = Demand(workload.requests, part.scheduler_config(), workload.hash_block_tokens)
    recorder = Recorder(record, name, demand, sink) if record else None
    fleet = make_fleet(demand, part.schedulers, model, recorder)
    return Prepared(
        plan.deployment,
        Simulation(demand, part.routing, fleet, progress=progress),
        demand,
        lambda: {"requests": requests_table(demand, name)},
        lambda: {
            "operators": operators,
            "step_time": _coverage([model]),
            **_spent([model]),
            "kv_capacity": part.capacity.source,
        },
    )


def prepare_disaggregated(
    workload: Workload,
    plan: Plan,
    models: Models,
    record: Sequence[str],
    sink: Sink,
    progress: Callable[[int], None],
) -> Prepared:
    """A prefill and a decode cluster, or an attention cluster that decodes. Raises ConfigError."""
    parts = plan.side("prefill"), plan.side("decode", "attention")
    routing = plan.deployment.routing
    steps, operators = zip(*map(models, parts), strict=True)
    if plan.captured:  # what was measured stands above what the capture's file supposed
        plan = replace(plan, deployment=with_measured_link(plan.deployment, operators[1]))
    connection, proxy_ps = connect(plan)
    prefill, decode = (side_of(part, model) for part, model in zip(parts, steps, strict=True))
    first, last = demands(
        workload.requests,
        prefill,
        decode,
        workload.hash_block_tokens,
        skip_decode=routing.skip_decode,
    )

    def stage(side: Side, demand: Demand) -> Stage:
        recorder = Recorder(record, side.name, demand, sink) if record else None
        return side.stage(demand, recorder)

    simulation = PrefillDecode(
        stage(prefill, first),
        stage(decode, last),
        connection,
        proxy_ps=proxy_ps,
        progress=progress,
    )

    def notes() -> dict[str, Any]:
        names = [part.cluster.name for part in parts]
        return {
            "operators": one_note(dict(zip(names, operators, strict=True))),
            "step_time": _coverage(steps),
            **_spent(steps),
            "kv_capacity": {p.cluster.name: p.capacity.source for p in parts},
            "lost_leases": sum(simulation.handovers.lost),
        }

    return Prepared(
        plan.deployment,
        simulation,
        first,
        lambda: {
            "requests": handed_over_table(simulation, prefill.name),
            "transfers": transfers_table(simulation, prefill.name, decode.name),
        },
        notes,
    )


def with_measured_link(deployment: Deployment, operators: Mapping[str, Any]) -> Deployment:
    """The deployment with what a profile measured of the handover, from a pair like it.

    ``operators`` is the note of the decode side's step times.
    """
    fitted = operators.get("link")
    if not fitted:
        return deployment
    bandwidth = fitted["bandwidth_gb_s"] or math.inf
    measured = {"setup_us": fitted["setup_us"], "bandwidth_gb_s": bandwidth}
    routing = deployment.routing.model_copy(update={"proxy_us": fitted["proxy_us"]})
    links = tuple(link.model_copy(update=measured) for link in deployment.links)
    return deployment.model_copy(update={"links": links, "routing": routing})


def connect(plan: Plan) -> tuple[Connection, int]:
    """What connects the two sides of a plan, and the proxy's time in ps. Raises ConfigError."""
    parts = plan.side("prefill"), plan.side("decode", "attention")
    layout = kv_layout(plan.model, *(part.cluster.engine for part in parts))
    proxy_ps = round(plan.deployment.routing.proxy_us * 1e-6 * PS_PER_S)
    return Connection(_link(plan, *parts), layout), proxy_ps


def one_note(operators: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What to note of the profiles of several clusters: one digest, and all they saw."""
    profiles = {name: note["profile"] for name, note in operators.items()}
    same = len(set(profiles.values())) == 1
    return {
        "profile": next(iter(profiles.values())) if same else text_digest(profiles),
        "fitted_on": sorted(
            {digest for note in operators.values() for digest in note["fitted_on"]}
        ),
        "clusters": operators,
    }


def _link(plan: Plan, prefill: ClusterPlan, decode: ClusterPlan) -> Link:
    ends = prefill.cluster.name, decode.cluster.name
    links = [link for link in plan.deployment.links if (link.from_, link.to) == ends]
    if len(links) != 1:
        raise ConfigError(f"links: one from {ends[0]} to {ends[1]} is needed, got {len(links)}")
    if links[0].layerwise and links[0].transfer == "pull":
        raise ConfigError("links: only a push can be layerwise: a pull begins after the prefill")
    return links[0]


def side_of(part: ClusterPlan, model: StepTimeModel) -> Side:
    return Side(
        part.cluster.name,
        part.schedulers,
        part.scheduler_config(),
        model,
        part.routing,
        loads_late=part.on_cpu,
    )


def _coverage(models: Sequence[StepTimeModel]) -> dict[str, Any]:
    """Steps, and those outside what the models hold for, also by layer if the models tell."""
    found: dict[str, Any] = {}
    outside: dict[str, int] = {}
    for model in models:
        for into, counts in (
            (found, model.coverage()),
            (outside, getattr(model, "outside", dict)()),
        ):
            for name, steps in counts.items():
                into[name] = into.get(name, 0) + steps
    return found | ({"outside": dict(sorted(outside.items()))} if outside else {})


def _spent(models: Sequence[StepTimeModel]) -> dict[str, Any]:
    """Where the time of the forwards went, seconds summed over ranks, if the models tell."""
    spent: dict[str, float] = {}
    for model in models:
        for name, seconds in getattr(model, "spent", dict)().items():
            spent[name] = spent.get(name, 0.0) + seconds
    known = {name: float(f"{seconds:.6g}") for name, seconds in spent.items() if name}
    return {"forward_s": known} if known else {}
