"""What a router may see and decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Load(Protocol):
    """A replica as a router sees it."""

    @property
    def unfinished(self) -> int:
        """Requests sent to it that have not finished."""

    @property
    def waiting(self) -> int:
        """Requests in its waiting queue."""

    @property
    def running(self) -> int:
        """Requests it runs."""

    @property
    def kv_usage(self) -> float:
        """Share of its KV blocks in use."""


class Router(Protocol):
    """Chooses a replica for each arrival."""

    def observe(self, now_ps: int, replicas: Sequence[Load]) -> None:
        """Called before every event, with the state since the last one."""

    def choose(self, replicas: Sequence[Load]) -> int:
        """Index of the replica that takes the arriving request."""
