"""A request as the scheduler sees it: lengths, progress and the blocks it holds."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

MAX_PREEMPTIONS = 900  # of one request; beyond, requests evict each other for ever


class Status(IntEnum):
    """Where a request stands in the scheduler."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED = 3
    ABORTED = 4


class Remote(IntEnum):
    """Where the KV of a request comes from or goes to, beside its own engine.

    A consumer's request is ``TO_LOAD`` until its blocks are reserved, ``LOADING`` until the
    KV has come and ``LOADED`` until it runs (vLLM's WAITING_FOR_REMOTE_KVS). A producer's is
    ``TO_KEEP`` until it finishes, then ``KEPT``: its blocks outlive it until they are released.
    """

    NONE = 0
    TO_LOAD = 1
    LOADING = 2
    LOADED = 3
    TO_KEEP = 4
    KEPT = 5


class Request:
    """State of one request, after vLLM's ``v1.request.Request``.

    ``[0, computed)`` of its ``tokens`` have KV (or will, once the steps in flight end);
    ``tokens`` = prompt + output tokens known so far. Under asynchronous scheduling
    ``placeholders`` counts tokens that are scheduled to be sampled but not known yet.
    """

    __slots__ = (
        "arrival_ps", "blocks", "boundary", "cached_blocks", "cached_tokens", "computed",
        "finished_ps", "first_scheduled_ps", "first_token_ps", "hashes", "in_flight", "index",
        "max_tokens", "name", "output", "placeholders", "preemptions", "prefilling", "priority",
        "prompt", "queued_ps", "remote", "replica", "shared", "stale", "status",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        prompt: int,
        max_tokens: int,
        *,
        name: str = "",
        arrival_ps: int = 0,
        priority: int = 0,
        hashes: Sequence[int] = (),
        shared: int | None = None,
        groups: int = 1,
        remote: Remote = Remote.NONE,
    ) -> None:
        self.index = index
        self.name = name
        self.arrival_ps = arrival_ps
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.priority = priority
        self.hashes = hashes  # one per full block of prompt + output
        # Of these, the leading ones that another request may have too; all, if not said.
        self.shared = len(hashes) if shared is None else shared
        self.output = 0
        self.computed = 0
        self.placeholders = 0
        self.in_flight = 0  # tokens scheduled in steps that have not ended
        self.stale = 0  # of these, tokens scheduled before a preemption
        self.preemptions = 0
        self.prefilling = False  # scheduled, with tokens left that the steps so far do not run
        self.remote = remote
        self.status = Status.WAITING
        self.blocks: list[list[int]] = [[] for _ in range(groups)]  # per KV group
        self.cached_blocks = [0] * groups  # of these, blocks already offered to the prefix cache
        self.boundary = 0  # shared prefix that a sliding-window group has not cached, tokens
        self.cached_tokens = -1  # prefix hit at the first admission; -1 before it
        self.replica = -1
        self.queued_ps = self.first_scheduled_ps = self.first_token_ps = self.finished_ps = -1

    @property
    def tokens(self) -> int:
        """Prompt and known output tokens."""
        return self.prompt + self.output

    def order(self) -> tuple[int, int, str, int]:
        """Sort key under the priority policy (vLLM's ``Request.__lt__``)."""
        return (self.priority, self.arrival_ps, self.name, self.index)
