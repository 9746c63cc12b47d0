"""Routers: which replica takes an arriving request. One policy a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.routing.base import Load, Router
from simulator.routing.least_loaded import LeastLoaded
from simulator.routing.round_robin import RoundRobin
from simulator.routing.vllm_dp import VllmDP
from traces.errors import ConfigError, nearest

ROUTERS: dict[str, Callable[[Sequence[Load]], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "vllm_dp": VllmDP,
}


def check_router(name: str) -> None:
    """Raise ConfigError naming the known routers unless ``name`` is one."""
    if name not in ROUTERS:
        raise ConfigError(f"routing.policy: unknown {name!r}{nearest(name, ROUTERS)}")


def create_router(name: str, replicas: Sequence[Load]) -> Router:
    """Return a router over ``replicas`` by name; raises ConfigError."""
    check_router(name)
    return ROUTERS[name](replicas)


__all__ = ["ROUTERS", "Load", "Router", "check_router", "create_router"]
