"""The pool of KV blocks: reference counts, the free queue in eviction order, the prefix cache.

Mirrors vLLM's ``v1/core/block_pool.py``. Block 0 is the null block: it stands for blocks a
sliding window has left behind and is never free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from traces.errors import InvariantError

NULL = 0
Key = tuple[int, int]  # (KV group, chained hash)


class BlockPool:
    """``blocks`` KV blocks of which one is the null block.

    ``free_blocks`` at equal state equals vLLM's ``get_num_free_blocks``.
    """

    def __init__(self, blocks: int, *, caching: bool) -> None:
        self.blocks = blocks
        self.caching = caching
        self.references = [0] * blocks
        self.key_of: list[Key | None] = [None] * blocks
        # Next to be handed out first; an ordered set, so a hit block leaves it in O(1).
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, blocks))
        self.cached: dict[Key, dict[int, None]] = {}
        self.evictions = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out, cached ones included."""
        return len(self.free)

    def lookup(self, hash_: int, groups: Sequence[int]) -> list[int] | None:
        """One cached block per group for this hash, or None unless every group has one."""
        found = []
        for group in groups:
            blocks = self.cached.get((group, hash_))
            if not blocks:
                return None
            found.append(next(iter(blocks)))
        return found

    def take(self, count: int) -> list[int]:
        """Hand out the ``count`` blocks that come first in the free queue, evicting their hash."""
        if count > len(self.free):
            raise InvariantError(f"{count} KV blocks wanted, {len(self.free)} free")
        taken = [self.free.popitem(last=False)[0] for _ in range(count)]
        for block in taken:
            self.references[block] = 1
            if self.key_of[block] is not None:
                self._forget(block)
                self.evictions += 1
        return taken

    def touch(self, blocks: Iterable[int]) -> None:
        """Add a reference to blocks found in the prefix cache."""
        for block in blocks:
            if block == NULL:
                continue
            if self.references[block] == 0:
                del self.free[block]
            self.references[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """Drop a reference to each block, given in the order in which they should be evicted.

        Blocks without a hash go to the front of the free queue, cached ones to its end.
        """
        first: list[int] = []
        last: list[int] = []
        for block in blocks:
            if block == NULL:
                continue
            self.references[block] -= 1
            if self.references[block] == 0:
                (last if self.key_of[block] is not None else first).append(block)
        for block in reversed(first):
            self.free[block] = None
            self.free.move_to_end(block, last=False)
        for block in last:
            self.free[block] = None

    def remember(self, block: int, key: Key) -> None:
        """Enter a full block into the prefix cache."""
        self.key_of[block] = key
        self.cached.setdefault(key, {})[block] = None

    def _forget(self, block: int) -> None:
        key = self.key_of[block]
        self.key_of[block] = None
        if key is not None:
            same = self.cached[key]
            del same[block]
            if not same:
                del self.cached[key]

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Raise InvariantError unless references and free queue match the blocks held."""
        counts = [0] * self.blocks
        for blocks in held:
            for block in blocks:
                counts[block] += block != NULL
        free = {b for b in range(1, self.blocks) if counts[b] == 0}
        if counts != self.references or free != self.free.keys():
            raise InvariantError("KV blocks leaked: references differ from the blocks held")
