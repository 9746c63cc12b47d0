"""What a router may see and decide."""

from __future__ import annotations

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
    """Chooses a replica for each arrival.

    ``look_ps`` is when it next wants to look at the replicas: it must be told of the first
    event at or after that time, and of each that follows while ``look_ps`` is not later,
    before the event. NEVER for a router that does not look.
    """

    look_ps: int

    def observe(self, now_ps: int) -> None:
        """An event is about to happen at this time."""

    def choose(self, request: int = 0) -> int:
        """Index of the replica that takes the arriving request, a row of the demand."""

    def finished(self, replica: int, request: int = 0) -> None:
        """A request of that replica finished."""
