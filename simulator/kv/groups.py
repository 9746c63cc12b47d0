"""KV groups: which blocks a layer type keeps, what it caches and what counts as a hit.

A model whose layers are all alike has one group. Models that mix full attention with
sliding windows have several, which share the pool. Mirrors vLLM's
``v1/core/single_type_kv_cache_manager.py`` (full attention and sliding window).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.kv.pool import NULL, BlockPool


def ceil_div(a: int, b: int) -> int:
    """Integer ceiling of a / b."""
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table.

    ``block_size`` in tokens; ``window`` in tokens, None for full attention.
    """

    block_size: int
    window: int | None = None

    @property
    def window_blocks(self) -> int:
        """Contiguous cached blocks that make a hit under the window."""
        return ceil_div((self.window or 1) - 1, self.block_size)

    def skipped_blocks(self, computed: int) -> int:
        """Blocks at the front that no token after the first ``computed`` attends to."""
        if self.window is None:
            return 0
        return max(0, computed - self.window + 1) // self.block_size

    def admission_cap(self, in_flight_tokens: int, max_model_len: int) -> int:
        """Most blocks one request holds at once (vLLM's ``max_admission_blocks_per_request``)."""
        if self.window is None:
            return ceil_div(max_model_len, self.block_size)
        held = min(self.window - 1 + in_flight_tokens, max_model_len)
        return ceil_div(held, self.block_size) + 1

    def reachable(self, first: int, last: int, boundaries: Sequence[int]) -> Sequence[int]:
        """Blocks of ``[first, last)`` that can serve a hit.

        Under a window only its tail before a resumable boundary can (vLLM's
        ``prefix_cache_retention_interval = 0``).
        """
        if self.window is None:
            return range(first, last)
        tails = [(b // self.block_size - self.window_blocks, b // self.block_size)
                 for b in boundaries]  # fmt: skip
        return [i for i in range(first, last) if any(low <= i < high for low, high in tails)]

    def longest_hit(
        self, pool: BlockPool, ids: Sequence[int], hashes: Sequence[int], blocks: int
    ) -> list[list[int]]:
        """Per group id, the blocks of the longest cached prefix of at most ``blocks`` blocks."""
        if self.window is not None:
            return self._longest_window_hit(pool, ids, hashes, blocks)
        hit: list[list[int]] = [[] for _ in ids]
        for i in range(blocks):
            found = pool.lookup(hashes[i], ids)
            if found is None:
                break
            for mine, block in zip(hit, found, strict=True):
                mine.append(block)
        return hit

    def _longest_window_hit(
        self, pool: BlockPool, ids: Sequence[int], hashes: Sequence[int], blocks: int
    ) -> list[list[int]]:
        # Right to left: the first run that fills the window wins. What lies before the
        # window is not needed and stands as null blocks.
        hit = [[NULL] * blocks for _ in ids]
        run = 0
        for i in range(blocks - 1, -1, -1):
            found = pool.lookup(hashes[i], ids)
            if found is None:
                run = 0
                continue
            for mine, block in zip(hit, found, strict=True):
                mine[i] = block
            run += 1
            if run >= self.window_blocks:
                return [mine[: i + run] for mine in hit]
        return [mine[:run] for mine in hit]
