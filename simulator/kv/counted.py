"""KV memory by counting: the same decisions as ``KVManager`` without naming each block.

Only a block whose hash another request shares can ever be hit by another request. All other
blocks are alike: a request's own full blocks can be hit by itself alone, after a preemption,
and as the tail is evicted first what is left of them is always a prefix. So the free queue,

    [ blank, blank, ...            | cached, in the order of eviction ]

is a number of blanks and a list whose entries are either one shared block or the run of
blocks one request left behind. Full attention only (one group).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from simulator.kv.groups import ceil_div
from simulator.scheduling.request import Request
from traces.errors import InvariantError

Hit = tuple[list[int], int]  # ids of shared blocks, then blocks of the request's own


class CountedKV:
    """Block accounting of one engine with one KV group; ``blocks`` counts the null block.

    ``wanted`` is how many free blocks the last refused admission asked for; ``version``
    changes whenever what can be hit changes.
    """

    def __init__(
        self, blocks: int, block_size: int, *, caching: bool, max_model_len: int,
        watermark: float = 0.0,
    ) -> None:  # fmt: skip
        self.blocks = blocks
        self.block_size = block_size
        self.caching = caching
        self.max_model_len = max_model_len
        self.watermark_blocks = int(watermark * blocks)
        self.free_blocks = self._blanks = blocks - 1
        self.evictions = 0
        self.wanted = 0
        self.version = 0
        self._queue: OrderedDict[int, int] = OrderedDict()  # shared id, or ~index of a request
        self._cached: dict[int, dict[int, None]] = {}
        self._references: list[int] = []  # per shared id
        self._hash_of: list[int] = []

    def take(self, count: int) -> None:
        """Hand out blocks, blanks first, evicting what is cached in order."""
        if count > self.free_blocks:
            raise InvariantError(f"{count} KV blocks wanted, {self.free_blocks} free")
        self.free_blocks -= count
        if count <= self._blanks:
            self._blanks -= count
            return
        count -= self._blanks
        self._blanks = 0
        self.evictions += count
        queue = self._queue
        while count:
            key = next(iter(queue))
            if key >= 0:
                del queue[key]
                self._forget(key)
                count -= 1
                continue
            left = queue[key] - count
            if left > 0:
                queue[key] = left
                return
            count -= queue.pop(key)

    def longest_hit(self, request: Request) -> tuple[Hit, int, int]:
        """See ``KVManager.longest_hit``."""
        if not self.caching:
            return ([], 0), 0, 0
        limit = (request.tokens - 1) // self.block_size
        ids: list[int] = []
        for j in range(min(request.shared, limit)):
            same = self._cached.get(request.hashes[j])
            if same is None:
                break
            ids.append(next(iter(same)))
        own = 0
        if len(ids) == request.shared:
            own = min(self._queue.get(~request.index, 0), limit - len(ids))
        return (ids, own), (len(ids) + own) * self.block_size, 0

    def admit(
        self, request: Request, new: int, hit: Hit, hit_tokens: int, *, reserve_full: bool,
        others_running: bool,
    ) -> bool:  # fmt: skip
        """See ``KVManager.admit``."""
        ids, own = hit
        slots = ceil_div(min(hit_tokens + new, self.max_model_len), self.block_size)
        whole = slots
        if reserve_full:
            whole = ceil_div(min(request.tokens, self.max_model_len), self.block_size)
        references = self._references
        idle = own + sum(references[i] == 0 for i in ids)
        wanted = max(slots, whole) - len(ids) - own + idle
        wanted += self.watermark_blocks if others_running else 0
        if wanted > self.free_blocks:
            self.wanted = wanted
            return False
        for i in ids:
            if references[i] == 0:
                del self._queue[i]
            references[i] += 1
        if own:
            if self._queue[~request.index] != own:
                raise InvariantError(f"request {request.name!r} hits part of its own blocks")
            del self._queue[~request.index]
        self.free_blocks -= idle
        request.blocks[0] = ids
        request.held = request.cached_blocks[0] = len(ids) + own
        self.take(slots - request.held)
        request.held = slots
        self.cache(request, min(hit_tokens + new, request.tokens))
        return True

    def extend(self, request: Request, new: int) -> bool:
        """See ``KVManager.extend``."""
        slots = ceil_div(min(request.computed + new, self.max_model_len), self.block_size)
        missing = slots - request.held
        if missing > self.free_blocks:
            return False
        if missing > 0:
            self.take(missing)
            request.held = slots
        self.cache(request, min(request.computed + new, request.tokens))
        return True

    def cache(self, request: Request, tokens: int) -> None:
        """See ``KVManager.cache``."""
        full = tokens // self.block_size
        first = request.cached_blocks[0]
        if full <= first or not self.caching:
            return
        for j in range(first, min(full, request.shared)):
            block = len(self._references)
            self._references.append(1)
            self._hash_of.append(request.hashes[j])
            self._cached.setdefault(request.hashes[j], {})[block] = None
            request.blocks[0].append(block)
            self.version += 1
        request.cached_blocks[0] = full

    def free(self, request: Request) -> None:
        """See ``KVManager.free``."""
        ids, cached = request.blocks[0], request.cached_blocks[0]
        blank = request.held - cached
        own = cached - len(ids)
        self._blanks += blank
        self.free_blocks += blank + own
        if own:
            if ~request.index in self._queue:
                raise InvariantError(f"request {request.name!r} left its blocks behind twice")
            self._queue[~request.index] = own
        for i in reversed(ids):
            self._references[i] -= 1
            if self._references[i] == 0:
                self._queue[i] = 1
                self.free_blocks += 1
        request.blocks[0] = []
        request.held = request.cached_blocks[0] = 0

    def _forget(self, block: int) -> None:
        same = self._cached[self._hash_of[block]]
        del same[block]
        if not same:
            del self._cached[self._hash_of[block]]
        self.version += 1

    def check(self, requests: Iterable[Request]) -> None:
        """Raise InvariantError if blocks leaked."""
        held = sum(r.held - len(r.blocks[0]) for r in requests)
        shared = sum(count > 0 for count in self._references)
        free = self._blanks + sum(self._queue.values())
        if free != self.free_blocks or held + shared + free != self.blocks - 1:
            raise InvariantError(
                f"KV blocks leaked: {held} own + {shared} shared + {free} free of {self.blocks - 1}"
                f" (counted free: {self.free_blocks})"
            )
