"""Routers: which replica takes an arriving request. One policy a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.demand import Demand
from simulator.routing.base import Load, Router
from simulator.routing.least_loaded import LeastLoaded
from simulator.routing.prefix_aware import PrefixAware
from simulator.routing.round_robin import RoundRobin
from simulator.routing.vllm_dp import VllmDP
from traces.errors import ConfigError, nearest

ROUTERS: dict[str, Callable[[Sequence[Load], Demand], Router]] = {
    "round_robin": lambda replicas, _: RoundRobin(replicas),
    "least_loaded": lambda replicas, _: LeastLoaded(replicas),
    "prefix_aware": PrefixAware,
    "vllm_dp": lambda replicas, demand: VllmDP(replicas, by_queue=demand.config.dp_by_queue),
}


def check_router(name: str) -> None:
    """Raise ConfigError naming the known routers unless ``name`` is one."""
    if name not in ROUTERS:
        raise ConfigError(f"routing.policy: unknown {name!r}{nearest(name, ROUTERS)}")


def create_router(name: str, replicas: Sequence[Load], demand: Demand) -> Router:
    """Return a router of ``demand`` over ``replicas`` by name; raises ConfigError."""
    check_router(name)
    return ROUTERS[name](replicas, demand)


__all__ = ["ROUTERS", "Load", "Router", "check_router", "create_router"]
