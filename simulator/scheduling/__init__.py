"""vLLM V1's scheduler: one policy a file; ``reference`` is the plain form and the oracle."""

from __future__ import annotations

from collections.abc import Callable

from simulator.scheduling.base import Policy, WaitingQueue
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.fcfs import FCFS
from simulator.scheduling.priority import Priority
from simulator.scheduling.request import Request, Status
from traces.errors import ConfigError, nearest

POLICIES: dict[str, Callable[[], Policy]] = {"fcfs": FCFS, "priority": Priority}


def create_policy(name: str) -> Policy:
    """Return a policy by name; raises ConfigError naming the known ones."""
    if name not in POLICIES:
        raise ConfigError(f"scheduling_policy: unknown {name!r}{nearest(name, POLICIES)}")
    return POLICIES[name]()


__all__ = [
    "POLICIES",
    "Policy",
    "Request",
    "SchedulerConfig",
    "Status",
    "WaitingQueue",
    "create_policy",
]
