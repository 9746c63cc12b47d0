"""First come, first served: the last to be admitted is the first to be preempted."""

from __future__ import annotations

from collections import deque

from simulator.scheduling.request import Request


class FCFSQueue:
    """A deque; preempted requests go to its front."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def push(self, request: Request) -> None:
        self._queue.append(request)

    def push_front(self, request: Request) -> None:
        self._queue.appendleft(request)

    def peek(self) -> Request:
        return self._queue[0]

    def pop(self) -> Request:
        return self._queue.popleft()

    def remove(self, request: Request) -> None:
        self._queue.remove(request)

    def __len__(self) -> int:
        return len(self._queue)


class FCFS:
    """vLLM's default policy."""

    name = "fcfs"

    def queue(self) -> FCFSQueue:
        return FCFSQueue()

    def victim(self, running: list[Request]) -> int:
        return len(running) - 1
