"""What the attention families share: a batch as requests, each with a query and a context.

Request r runs q queries after c cached keys; query i sees min(window, c + i) keys (causal). A
thread block handles a tile of queries of one head and walks over blocks of keys, so a request
costs tiles and key blocks, both rounded up (FlashAttention-2, arXiv:2307.08691, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.base import number

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests of all rows, ``(n_requests,)``: ``count`` equal ones of row ``row``."""

    rows: int
    row: Ints
    count: Floats
    query: Floats
    context: Floats

    def sum(self, values: Floats) -> Floats:
        """Sum of a value over the requests of each row, ``(rows,)``."""
        found: Floats = np.bincount(self.row, self.count * values, self.rows).astype(np.float64)
        return found

    def max(self, values: Floats) -> Floats:
        """Largest value among the requests of each row, at least 0."""
        found = np.zeros(self.rows)
        np.maximum.at(found, self.row, values)
        return found


def requests_of(rows: pd.DataFrame) -> Requests:
    """Requests from the rows' lists of lengths, or from batch and common lengths.

    >>> rows = pd.DataFrame({"batch": [2, 2], "query_tokens": [1, None],
    ...     "context_tokens": [7, None], "query_lens": [None, [4, 1]],
    ...     "context_lens": [None, [0, 9]]})
    >>> found = requests_of(rows)
    >>> found.sum(found.context).tolist(), found.max(found.query).tolist()
    ([14.0, 9.0], [1.0, 4.0])
    """
    batch, query, context = (number(rows, n) for n in ("batch", "query_tokens", "context_tokens"))
    row, count = np.arange(len(rows)), batch
    if "query_lens" not in rows:
        return Requests(len(rows), row, count, query, context)
    listed = np.array([np.ndim(q) > 0 for q in rows["query_lens"]], bool)
    if not listed.any():
        return Requests(len(rows), row, count, query, context)
    queries = [np.asarray(q, float) for q in rows["query_lens"][listed]]
    contexts = [np.asarray(c, float) for c in rows["context_lens"][listed]]
    lengths = [len(q) for q in queries]
    return Requests(
        len(rows),
        np.concatenate([row[~listed], np.repeat(row[listed], lengths)]),
        np.concatenate([count[~listed], np.ones(sum(lengths))]),
        np.concatenate([query[~listed], *queries]),
        np.concatenate([context[~listed], *contexts]),
    )


def pairs_of(query: Floats, context: Floats, window: Floats) -> Floats:
    """Pairs of a query and a key it sees, causal and windowed (window 0: none).

    >>> pairs_of(np.array([3.0]), np.array([10.0]), np.array([0.0])).item()  # 11 + 12 + 13
    36.0
    """
    seen = np.where(window > 0, window, np.inf)
    growing = np.clip(seen - context, 0, query)  # queries that still see every key
    full = np.where(window > 0, window, 0) * (query - growing)
    return growing * context + growing * (growing + 1) / 2 + full


def keys_of(query: Floats, context: Floats, window: Floats) -> Floats:
    """Keys that a request's queries see between them."""
    return np.minimum(context + query, np.where(window > 0, window + query - 1, np.inf))


def key_block(head_dim: Floats) -> Floats:
    """Keys that a thread block reads at a time: fewer of wide heads, to fit shared memory.

    As FlashAttention-3 with a paged cache (``tile_size.h``, tile_size_fwd_sm90).

    >>> key_block(np.array([64.0, 128.0, 192.0, 256.0])).tolist()
    [128.0, 128.0, 96.0, 80.0]
    """
    found: Floats = np.where(head_dim <= 128, 128.0, np.where(head_dim <= 192, 96.0, 80.0))
    return found


def narrow_key_block(head_dim: Floats) -> Floats:
    """Keys of a one-byte cache that a decode's time steps by.

    As FlashAttention-3 for heads of 64 and 256 (``tile_size.h``, element_size 1); between, the
    tables of H100 and H200 step by half of its 160.

    >>> narrow_key_block(np.array([64.0, 128.0, 192.0, 256.0])).tolist()
    [160.0, 80.0, 80.0, 128.0]
    """
    found: Floats = np.where(head_dim <= 64, 160.0, np.where(head_dim <= 192, 80.0, 128.0))
    return found
