"""Thread blocks of one kernel on the multiprocessors, in the order of their launch.

A block starts on the multiprocessor that is first free (list scheduling; Graham, SIAM J. Appl.
Math. 17(2), 1969), so a batch of unequal requests ends with its last long one while others
idle. All blocks walk over keys at the same pace; the unit of time is one key block.

Query heads that share a KV head read the same keys. The later one finds them in the L2 cache if
less than the cache's size was read from memory since the earlier one started: heads of equal
requests run abreast and share, those of unequal ones drift apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

OVERHEAD = 0.5  # key blocks: queries are loaded before, outputs written after the walk


def scheduled(
    row: Ints, first: Floats, last: Floats, heads: Floats, group: Floats, cached: Floats, sms: int
) -> tuple[Floats, Floats]:
    """Time until the last block ends, and key blocks read from memory, of each row; in key blocks.

    Tiles ``(tiles,)`` of row ``row`` (ascending), in launch order: those of one request follow
    each other, its first one has ``first`` set, and they walk over ``last`` key blocks. All
    tiles are launched for one query head after the other, of ``heads`` ``(rows,)``; ``group``
    of them share a KV head. The cache holds ``cached`` ``(rows,)`` key blocks.

    >>> one = np.ones(1)
    >>> tiles = np.zeros(3, int), np.ones(3), np.array([1.0, 1.0, 10.0])
    >>> [x.item() for x in scheduled(*tiles, 2 * one, 2 * one, 100 * one, 2)]  # 3 + 1.5 + 10.5
    [15.0, 12.0]
    """
    starts = np.searchsorted(row, np.arange(len(heads) + 1))
    found = np.zeros((len(heads), 2))
    _schedule(starts, first > 0, last, heads, group, cached, sms, found)
    return found[:, 0], found[:, 1]


@njit(cache=True)
def _schedule(starts, first, walk, heads, group, cached, sms, found):  # type: ignore[no-untyped-def]  # pragma: no cover
    for r in range(len(starts) - 1):
        begin, end = starts[r], starts[r + 1]
        free = np.zeros(sms)  # a heap of when each multiprocessor is free
        seen = np.full(end - begin, -1.0)  # start of the last walk over a request's keys
        read, total = 0.0, 0.0
        for head in range(int(heads[r])):
            if head % int(group[r]) == 0:
                seen[:] = -1.0
            request = 0
            for i in range(begin, end):
                if first[i]:
                    request = i - begin
                start = free[0]
                total += walk[i]
                share = (read + walk[i]) / total  # of the walk that comes from memory
                if seen[request] < 0 or (start - seen[request]) * sms * share > cached[r]:
                    read += walk[i]
                seen[request] = start
                _push(free, start + OVERHEAD + walk[i])
        found[r, 0], found[r, 1] = free.max(), read


@njit(cache=True)
def _push(heap, value):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Replace the least by ``value``."""
    size, at = len(heap), 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value
