"""Block tables of all requests of one engine.

Mirrors vLLM's ``v1/core/kv_cache_manager.py`` and ``kv_cache_coordinator.py`` (0.32.0).
A request's tokens over its life, the half-open intervals who owns what::

    0          hit             computed          computed+new            tokens
    |--cached--|--own blocks---|--this step------|--not yet allocated----|
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from simulator.kv.groups import Group, ceil_div
from simulator.kv.pool import NULL, BlockPool
from simulator.scheduling.request import Request

Hit = list[list[int]]


class KVManager:
    """Allocates, frees and caches blocks; ``groups`` share one pool of ``blocks`` blocks."""

    def __init__(
        self,
        blocks: int,
        block_size: int,
        windows: Sequence[int | None] = (None,),
        *,
        caching: bool,
        in_flight_tokens: int,
        max_model_len: int,
        watermark: float = 0.0,
    ) -> None:
        self.pool = BlockPool(blocks, caching=caching)
        self.block_size = block_size
        self.groups = [Group(block_size, w) for w in windows]
        self.caching = caching
        self.max_model_len = max_model_len
        self._caps = [g.admission_cap(in_flight_tokens, max_model_len) for g in self.groups]
        self.watermark_blocks = int(watermark * blocks)
        # Groups of one kind are looked up together, full attention first.
        kinds: dict[int | None, list[int]] = {}
        for i, window in enumerate(windows):
            kinds.setdefault(window, []).append(i)
        self._kinds = sorted(kinds.items(), key=lambda kind: kind[0] is not None)

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out."""
        return self.pool.free_blocks

    @property
    def blocks(self) -> int:
        """Blocks of the pool, the null block included."""
        return self.pool.blocks

    @property
    def evictions(self) -> int:
        """Cached blocks that were handed out anew."""
        return self.pool.evictions

    def longest_hit(self, request: Request) -> tuple[Hit, int, int]:
        """Longest prefix of the request in the cache.

        Returns the blocks per group, the tokens they hold (a multiple of the block size,
        at most ``tokens - 1``: the last token is recomputed for its logits), and the
        boundary in tokens up to which only some groups have it (0 if none).
        """
        nothing: Hit = [[] for _ in self.groups]
        if not self.caching:
            return nothing, 0, 0
        hit = nothing
        length = (request.tokens - 1) // self.block_size
        longest = 0
        full_done = False
        while True:
            current = length
            for window, ids in self._kinds:
                if window is None and full_done:
                    current = min(current, len(hit[ids[0]]))
                    continue
                group = self.groups[ids[0]]
                found = group.longest_hit(self.pool, ids, request.hashes, current)
                current = len(found[0])
                for i, blocks in zip(ids, found, strict=True):
                    hit[i] = blocks
                full_done = full_done or window is None
                longest = max(longest, current)
            converged = current >= length
            length = min(length, current)
            if converged or (len(self._kinds) == 2 and self._kinds[0][0] is None):
                break
        hit = [blocks[:length] for blocks in hit]
        uncached = longest > length
        return hit, length * self.block_size, longest * self.block_size if uncached else 0

    def admit(
        self, request: Request, new: int, hit: Hit, hit_tokens: int, *, reserve_full: bool,
        others_running: bool, spare: int = 0, delayed: bool = False,
    ) -> bool:  # fmt: skip
        """Give a waiting request its hit blocks and blocks for ``new`` tokens, or refuse.

        ``reserve_full``: the whole prompt must fit now, though only this chunk's blocks
        are taken (``scheduler_reserve_full_isl``). ``spare``, ``delayed``: see ``KV``.
        """
        watermark = self.watermark_blocks if others_running else 0
        free = self.pool.free_blocks
        if reserve_full:
            whole = min(request.tokens, self.max_model_len)
            if self._needed(whole, hit, hit_tokens, capped=True) + watermark > free:
                return False
        slots = min(hit_tokens + new, self.max_model_len)
        if self._needed(slots, hit, hit_tokens) + watermark > free - spare:
            return False
        skipped = [g.skipped_blocks(hit_tokens) for g in self.groups]
        for i, blocks in enumerate(hit):
            kept = blocks[skipped[i] :]
            self.pool.touch(kept)
            request.blocks[i] = [NULL] * skipped[i] + kept
            request.cached_blocks[i] = len(request.blocks[i])
        self._allocate(request, slots)
        if not delayed:
            self.cache(request, min(hit_tokens + new, request.tokens))
        return True

    def missing(self, request: Request) -> int:
        """See ``KV``."""
        whole = ceil_div(min(request.tokens, self.max_model_len), self.block_size)
        return sum(max(0, whole - len(blocks)) for blocks in request.blocks)

    def resume(self, request: Request, new: int, *, others_running: bool) -> bool:
        """See ``KV``."""
        watermark = self.watermark_blocks if others_running else 0
        if self.missing(request) + watermark > self.pool.free_blocks:
            return False
        return self.extend(request, new)

    def extend(self, request: Request, new: int) -> bool:
        """Give a running request blocks for ``new`` more tokens, or refuse."""
        slots = min(request.computed + new, self.max_model_len)
        self._leave_behind(request)
        required = ceil_div(slots, self.block_size)
        needed = sum(max(0, required - len(blocks)) for blocks in request.blocks)
        if needed > self.pool.free_blocks:
            return False
        self._allocate(request, slots)
        self.cache(request, min(request.computed + new, request.tokens))
        return True

    def cache(self, request: Request, tokens: int) -> None:
        """Enter the request's full blocks among its first ``tokens`` into the prefix cache."""
        if not self.caching:
            return
        full = tokens // self.block_size
        boundaries = [request.prompt - 1]
        if request.boundary:
            boundaries.append(request.boundary)
        for i, group in enumerate(self.groups):
            blocks = request.blocks[i]
            first = request.cached_blocks[i]
            if first >= full:
                continue
            for j in group.reachable(first, full, boundaries):
                if blocks[j] != NULL:
                    self.pool.remember(blocks[j], (i, request.hashes[j]))
            request.cached_blocks[i] = full

    def free(self, request: Request) -> None:
        """Take all blocks back, the tail first in line for eviction."""
        for i, blocks in enumerate(request.blocks):
            self.pool.give_back(reversed(blocks))
            request.blocks[i] = []
            request.cached_blocks[i] = 0

    def check(self, requests: Iterable[Request]) -> None:
        """Raise InvariantError if blocks leaked."""
        self.pool.check(blocks for r in requests for blocks in r.blocks)

    def _needed(self, tokens: int, hit: Hit, hit_tokens: int, *, capped: bool = False) -> int:
        needed = 0
        references = self.pool.references
        for group, cap, blocks in zip(self.groups, self._caps, hit, strict=True):
            required = ceil_div(tokens, self.block_size)
            if capped:
                required = min(required, cap)
            skipped = group.skipped_blocks(hit_tokens)
            needed += max(0, required - max(skipped, len(blocks)))
            # A hit block that nobody holds leaves the free queue too.
            needed += sum(references[b] == 0 for b in blocks[skipped:] if b != NULL)
        return needed

    def _leave_behind(self, request: Request) -> None:
        done = max(0, request.computed - request.in_flight)
        for i, group in enumerate(self.groups):
            blocks = request.blocks[i]
            left = []
            for j in range(min(group.skipped_blocks(done), len(blocks)) - 1, -1, -1):
                if blocks[j] == NULL:
                    break
                left.append(blocks[j])
                blocks[j] = NULL
            if left:
                self.pool.give_back(left)

    def _allocate(self, request: Request, tokens: int) -> None:
        required = ceil_div(tokens, self.block_size)
        for blocks in request.blocks:
            if required > len(blocks):
                blocks += self.pool.take(required - len(blocks))
