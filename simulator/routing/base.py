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

    ``observes``: it must be told of every event's time before the event.
    """

    observes: bool

    def observe(self, now_ps: int) -> None:
        """An event is about to happen at this time."""

    def choose(self) -> int:
        """Index of the replica that takes the arriving request."""

    def finished(self, replica: int) -> None:
        """A request of that replica finished."""
