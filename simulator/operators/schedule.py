"""Thread blocks of one kernel on the multiprocessors, in the order of their launch.

A block starts on the multiprocessor that is first free (list scheduling; Graham, SIAM J. Appl.
Math. 17(2), 1969), so a batch of unequal requests ends with its last long one while others
idle. All blocks walk over keys at the same pace; the unit of time is one key block.

Query heads that share a KV head read the same keys. The later one finds them in the L2 cache if
less than the cache's size was read from memory since the earlier one started: heads of equal
requests run abreast and share, those of unequal ones drift apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from simulator.operators.attention import Requests

Floats = npt.NDArray[np.float64]

OVERHEAD = 0.5  # key blocks: queries are loaded before, outputs written after the walk


@dataclass(frozen=True, slots=True)
class Tiling:
    """Queries and keys of a thread block, and multiprocessors with one block each at a time."""

    queries: int
    keys: int
    sms: int


def scheduled(
    requests: Requests, reach: Floats, heads: Floats, group: Floats, cached: Floats, tiling: Tiling
) -> tuple[Floats, Floats]:
    """Time until the last block ends, and key blocks read from memory, of each row; in key blocks.

    The requests of a row are launched in their order, a tile of queries after the other, all for
    one query head after the other, of ``heads`` ``(rows,)``; ``group`` of them share a KV head.
    A tile walks over the key blocks up to its last query, at most ``reach`` ``(rows,)``. The cache
    holds ``cached`` ``(rows,)`` key blocks.

    >>> ones = np.ones(3)
    >>> batch = Requests(1, np.zeros(3, int), ones, ones, np.array([9.0, 9.0, 99.0]))
    >>> sizes = [np.array([float(x)]) for x in (np.inf, 2, 2, 100)]
    >>> [x.item() for x in scheduled(batch, *sizes, Tiling(64, 10, 2))]  # 3 + 1.5 + 10.5
    [15.0, 12.0]
    """
    order = np.argsort(requests.row, kind="stable")
    order = np.repeat(order, requests.count[order].astype(int))  # equal ones one by one
    starts = np.searchsorted(requests.row[order], np.arange(requests.rows + 1))
    found = np.zeros((requests.rows, 2))
    _schedule(
        starts, requests.query[order], requests.context[order], reach, heads, group, cached,
        (tiling.queries, tiling.keys, tiling.sms), found,
    )  # fmt: skip
    return found[:, 0], found[:, 1]


@njit(cache=True)
def _schedule(starts, query, context, reach, heads, group, cached, tiling, found):  # type: ignore[no-untyped-def]  # pragma: no cover
    rows_of, keys_of, sms = tiling
    for r in range(len(starts) - 1):
        begin, end = starts[r], starts[r + 1]
        free = np.zeros(sms)  # a heap of when each multiprocessor is free
        seen = np.full(end - begin, -1.0)  # start of the last walk over a request's keys
        read, total = 0.0, 0.0
        for head in range(int(heads[r])):
            if head % int(group[r]) == 0:
                seen[:] = -1.0
            for i in range(begin, end):
                for tile in range(int(np.ceil(query[i] / rows_of))):
                    last = context[i] + min((tile + 1) * rows_of, query[i])
                    walk = min(np.ceil(last / keys_of), reach[r])
                    start, before = free[0], seen[i - begin]
                    total += walk
                    share = (read + walk) / total  # of the walk that comes from memory
                    if before < 0 or (start - before) * sms * share > cached[r]:
                        read += walk
                    seen[i - begin] = start
                    _push(free, start + OVERHEAD + walk)
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
