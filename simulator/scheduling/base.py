"""What a scheduling policy decides: the order of the waiting queue and who is preempted."""

from __future__ import annotations

from typing import Protocol

from simulator.scheduling.request import Request


class WaitingQueue(Protocol):
    """Requests waiting to run, in the policy's order."""

    def push(self, request: Request) -> None:
        """Add a request that arrived."""

    def push_front(self, request: Request) -> None:
        """Put back a request that was preempted or skipped."""

    def peek(self) -> Request:
        """The next request to admit; raises IndexError when empty."""

    def pop(self) -> Request:
        """Remove and return what ``peek`` shows."""

    def remove(self, request: Request) -> None:
        """Remove a request that was aborted or finished while it waited."""

    def __len__(self) -> int: ...


class Policy(Protocol):
    """A scheduling policy (vLLM's ``--scheduling-policy``)."""

    name: str

    def queue(self) -> WaitingQueue:
        """A new, empty waiting queue."""

    def victim(self, running: list[Request]) -> int:
        """Index in ``running`` of the request to preempt; ``running`` is not changed."""
