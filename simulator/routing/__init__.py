"""Routers: which replica takes an arriving request. One policy a file."""

from __future__ import annotations

from collections.abc import Callable

from simulator.routing.base import Load, Router
from simulator.routing.least_loaded import LeastLoaded
from simulator.routing.round_robin import RoundRobin
from simulator.routing.vllm_dp import VllmDP
from traces.errors import ConfigError, nearest

ROUTERS: dict[str, Callable[[], Router]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "vllm_dp": VllmDP,
}


def create_router(name: str) -> Router:
    """Return a router by name; raises ConfigError naming the known ones."""
    if name not in ROUTERS:
        raise ConfigError(f"routing.policy: unknown {name!r}{nearest(name, ROUTERS)}")
    return ROUTERS[name]()


__all__ = ["ROUTERS", "Load", "Router", "create_router"]
