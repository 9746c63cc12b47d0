"""Where points are evaluated: this process, processes of this machine, a Ray cluster.

All give the same rows: ``evaluate`` depends on nothing but its task.
"""

from __future__ import annotations

from collections.abc import Callable

from replay.whatif.backends.base import Backend, Outcome
from replay.whatif.backends.local import Here, Local
from replay.whatif.backends.ray import Ray
from traces.errors import ConfigError, nearest

BACKENDS: dict[str, Callable[[int, str | None], Backend]] = {
    "local": lambda jobs, address: Local(jobs) if jobs > 1 else Here(),
    "ray": Ray,
}


def create_backend(name: str, jobs: int, address: str | None) -> Backend:
    """The backend of that name with ``jobs`` processes. Raises ConfigError."""
    if name not in BACKENDS:
        raise ConfigError(f"--backend: unknown {name!r}{nearest(name, BACKENDS)}")
    if address is not None and name != "ray":
        raise ConfigError(f"--address: only for --backend ray, not {name}")
    return BACKENDS[name](jobs, address)


__all__ = ["Backend", "Outcome", "create_backend"]
