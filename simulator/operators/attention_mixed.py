"""Attention of one batch that mixes prefills and decodes of any lengths, in one kernel.

A thread block takes a tile of queries of one head and walks over the key blocks of its request;
a decode fills a tile by itself, and its keys are not split between blocks as they are in a batch
of decodes only (FlashAttention-2's ``mha_varlen_fwd`` as built into vLLM). Blocks are launched
head by head, request by request, tile by tile, for as many tiles as the longest query has. So
the time is that of a schedule of unequal jobs on the multiprocessors (``schedule.py``), or that
of reading from memory what the cache did not keep. Both follow from the batch's actual lengths.

>>> rows = pd.DataFrame({"query_lens": [[64, 1, 1]], "context_lens": [[0, 127, 1279]],
...     "heads": [2], "kv_heads": [1], "head_dim": [64], "window": [0], "kv_dtype": ["bfloat16"]})
>>> work = AttentionMixed().shape(rows, Device(1, 1e15)).work
>>> work["load"].item(), work["makespan"].item()  # key blocks of 128: two heads x (1 + 1 + 10)
(24.0, 27.0)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.attention import keys_of, pairs_of, requests_of
from simulator.operators.attention_prefill import HEAD
from simulator.operators.base import Device, Shape, label, number, octaves, waves, width
from simulator.operators.lines import Axis
from simulator.operators.schedule import Tiling, scheduled

Floats = npt.NDArray[np.float64]

TILE, KEY_BLOCK = 64, 128
OTHERS = ("spread", "prefills", "heads", "kv_heads", *HEAD)


class AttentionMixed:
    """The ``attention_mixed`` family; a request of one query is a decode."""

    labels: tuple[str, ...] = ("kv_dtype",)
    keyed: tuple[str, ...] = ("layer",)
    axes: tuple[Axis, ...] = (
        Axis("query", "query", ("context", "decodes", "decode_context", *OTHERS)),
        Axis("context", "context", ("query", "decodes", "decode_context", *OTHERS)),
        Axis("decodes", "decodes", ("query", "context", "decode_context", *OTHERS)),
        Axis("decode_context", "decode_context", ("query", "context", "decodes", *OTHERS)),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in key blocks walked: of all, by the longest; bytes, FLOPs, tiles."""
        heads, kv_heads, size = (number(rows, n) for n in ("heads", "kv_heads", "head_dim"))
        window, stored = number(rows, "window", 0), width(rows, "kv_dtype")
        r = requests_of(rows)
        own_window, one = window[r.row], np.ones_like(r.query)
        single = (r.query == 1).astype(float)
        tiles_each, walked_each, longest_each = jobs(r.query, r.context, own_window)
        tiles, longest = r.sum(tiles_each), r.max(longest_each)
        load = heads * r.sum(walked_each) / device.sms
        block_bytes = 2 * KEY_BLOCK * size * stored  # keys and values
        walked, read = scheduled(
            r, reach_of(window), heads, np.maximum(heads // kv_heads, 1),
            device.l2_bytes / block_bytes, Tiling(TILE, KEY_BLOCK, device.sms),
        )  # fmt: skip
        launched = heads * r.sum(one) * np.ceil(r.max(r.query) / TILE) / device.sms
        keys = r.sum(keys_of(r.query, r.context, own_window))
        decodes, prefills = r.sum(single), r.sum(one - single)
        query_sum = r.sum(r.query)
        many = np.maximum(prefills, 1)
        query, context = (r.sum((one - single) * v) / many for v in (r.query, r.context))
        decode_context = r.sum(single * r.context) / np.maximum(decodes, 1)
        squares = r.sum(single * r.context**2) / np.maximum(decodes, 1)
        spread = squares / np.maximum(decode_context, 1) ** 2 - (decode_context > 0)
        work = {
            "launch": np.ones_like(heads),
            "makespan": walked,
            "load": load,
            "read": read * block_bytes,
            "launched": launched,
            "bytes": 2 * keys * kv_heads * size * stored + 4 * query_sum * heads * size,
            "flops": 4 * r.sum(pairs_of(r.query, r.context, own_window)) * heads * size,
            "tiles": heads * tiles / device.sms,
        }
        octave, tail = waves(heads * tiles, device.sms)
        features = {
            "makespan": octaves(walked),
            "load": octaves(load),
            "longest": octaves(longest),
            "balance": octaves(walked) - octaves(load),
            "read": octaves(work["read"]),
            "launched": octaves(launched),
            "bytes": octaves(work["bytes"]),
            "flops": octaves(work["flops"]),
            "tiles": octave,
            "tail": tail,
            "decodes": octaves(decodes),
            "query": octaves(query),
            "chunk_walk": octaves(r.max((one - single) * longest_each)),
            "chunk_load": octaves(heads * r.sum((one - single) * walked_each) / device.sms),
            "heads": octaves(heads),
            "kv_heads": octaves(kv_heads),
            "head_dim": size,
            "stored": stored,
            "window": octaves(np.where(window > 0, window, 2.0**20)),
        }
        place = {
            "query": query, "context": context, "decodes": decodes,
            "decode_context": decode_context, "spread": np.maximum(spread, 0).round(6),
            "prefills": prefills, "heads": heads, "kv_heads": kv_heads, "head_dim": size,
            "window": window, "kv_dtype": label(rows, "kv_dtype"),
        }  # fmt: skip
        return Shape(work, features, place)


def jobs(query: Floats, context: Floats, window: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each request and head: tiles, key blocks that they walk over in all, and the longest.

    >>> [x.item() for x in jobs(np.array([128.0]), np.array([256.0]), np.array([0.0]))]
    [2.0, 6.0, 3.0]
    """
    tiles = np.ceil(query / TILE)
    ends = (context + query) / KEY_BLOCK
    last = np.ceil(ends)
    reach = reach_of(window)
    longest = np.minimum(last, reach)
    first = np.ceil((context + np.minimum(query, TILE)) / KEY_BLOCK)
    walked = tiles * (np.minimum(first, reach) + longest) / 2
    return tiles, walked, longest


def reach_of(window: Floats) -> Floats:
    """Key blocks that a sliding window may touch; no end to them without one."""
    found: Floats = np.where(window > 0, np.ceil(window / KEY_BLOCK) + 1, np.inf)
    return found
