"""Priority: smaller ``priority`` first, then earlier arrival; the largest is preempted."""

from __future__ import annotations

import heapq

from simulator.scheduling.request import Request

_Entry = tuple[tuple[int, int, str, int], Request]


class PriorityQueue:
    """A heap; there is no front to put a request back to, its rank decides."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []

    def push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.order(), request))

    push_front = push

    def peek(self) -> Request:
        return self._heap[0][1]

    def pop(self) -> Request:
        return heapq.heappop(self._heap)[1]

    def remove(self, request: Request) -> None:
        self._heap.remove((request.order(), request))
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)


class Priority:
    """vLLM's ``--scheduling-policy priority``."""

    name = "priority"

    def queue(self) -> PriorityQueue:
        return PriorityQueue()

    def victim(self, running: list[Request]) -> int:
        # max() keeps the first of equals, as vLLM's does.
        return max(range(len(running)), key=lambda i: (running[i].priority, running[i].arrival_ps))
