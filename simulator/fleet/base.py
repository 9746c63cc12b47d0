"""Replicas of one engine as a simulation drives them: to the next outside event.

An outside event is what a replica cannot know of: an arrival, a handover from another
stage, a transfer's end, a lock-step partner. Up to there it needs nobody, so it is run
there in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from simulator.routing.base import Load as RouterLoad

MANY = 1 << 16  # events in one call: some ten milliseconds, between looks at the keyboard


class Finish(NamedTuple):
    """A request that finished."""

    request: int
    replica: int
    at_ps: int


class Load(NamedTuple):
    """A request whose blocks are reserved, and the time at which it asks for its KV.

    ``blocks`` of its prompt come from the other side, the others it has in its prefix cache.
    """

    request: int
    replica: int
    at_ps: int
    blocks: int


class Fleet(Protocol):
    """The replicas; requests are rows of the demand it was made for.

    ``next_ps`` is the time of the next event of any replica, NEVER if there is none.
    """

    next_ps: int

    @property
    def loads(self) -> Sequence[RouterLoad]:
        """The replicas as a router sees them."""

    @property
    def begun(self) -> Sequence[Load]:
        """Loads of KV that began in the last ``run``."""

    def arrive(self, request: int, replica: int, at_ps: int) -> None:
        """A request is sent to a replica. No event before ``at_ps`` may be left."""

    def run(self, limit_ps: int, *, events: int = MANY, in_order: bool = False) -> Sequence[Finish]:
        """Process events before ``limit_ps``; returns the requests that finished.

        May stop early: look at ``next_ps``. With ``in_order`` events are processed by time
        over all replicas and none follows one in which a request finished, so that it may
        release an arrival; else each replica runs ahead to the limit. At most ``events``.
        Requests that load or keep KV must be run in order: it stops at each load, too.

        Raises ConfigError if requests preempt each other for ever, InvariantError if the
        engine contradicts itself.
        """

    def notify(self, request: int, replica: int, at_ps: int) -> None:
        """KV has come that a request waits for, or been taken that was kept of one."""

    def close(self) -> None:
        """Bring all requests up to date, also those that have not finished."""

    def check(self) -> None:
        """Raise InvariantError unless all KV blocks have come back."""

    def describe(self) -> str:
        """What is left, for an error."""
