"""When requests reach the front end: at their own times, or as others finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simulator.scheduling.request import Request


class Arrivals(Protocol):
    """Releases requests."""

    def start(self) -> Sequence[tuple[int, Request]]:
        """Requests known at the start, with their arrival in ps."""

    def finished(self, request: Request, now_ps: int) -> Sequence[tuple[int, Request]]:
        """Requests released by the end of ``request``."""


class OpenLoop:
    """Every request at its own arrival time."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._requests = requests

    def start(self) -> Sequence[tuple[int, Request]]:
        return [(r.arrival_ps, r) for r in self._requests]

    def finished(self, request: Request, now_ps: int) -> Sequence[tuple[int, Request]]:
        return ()


class ClosedLoop:
    """``concurrency`` requests in flight: the next one is sent when one finishes."""

    def __init__(self, requests: Sequence[Request], concurrency: int) -> None:
        self._requests = iter(requests)
        self._concurrency = concurrency

    def start(self) -> Sequence[tuple[int, Request]]:
        first = [r for _, r in zip(range(self._concurrency), self._requests, strict=False)]
        return [(0, r) for r in first]

    def finished(self, request: Request, now_ps: int) -> Sequence[tuple[int, Request]]:
        following = next(self._requests, None)
        return () if following is None else [(now_ps, following)]
