"""Prefill attention: requests of many queries each, over their own and cached keys.

FLOPs 4 pairs heads head_dim (two GEMMs; FlashAttention-2, arXiv:2307.08691, section 4.1);
bytes are queries and outputs, keys and values as computed and as cached.

>>> rows = pd.DataFrame({"batch": [1], "query_tokens": [4], "context_tokens": [0], "heads": [2],
...     "kv_heads": [1], "head_dim": [64], "window": [0], "kv_dtype": ["bfloat16"]})
>>> AttentionPrefill().shape(rows, Device(132, 1e15)).work["flops"].item()  # 10 pairs
5120.0
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.operators.attention import key_block, keys_of, pairs_of, requests_of
from simulator.operators.base import (
    Device,
    Floats,
    Shape,
    label,
    number,
    octaves,
    waves,
    width,
)
from simulator.operators.lines import Axis

HEAD = ("head_dim", "window", "kv_dtype")
TILE = 128
# FlashAttention-3 packs the query heads of a KV head into the rows of a tile where lengths vary;
# tiles of narrow heads are 192 rows high (``tile_size.h``, tile_size_fwd_sm90).
NARROW = 96
# A thread block of a kernel for Blackwell takes two tiles of 128 queries of one head at a time
# (CUTLASS, ``examples/77_blackwell_fmha``), and so do the times of TensorRT-LLM's.
PAIR, PAIRED = 256, "trtllm"


class AttentionPrefill:
    """The ``attention_prefill`` family; requests may differ in length."""

    labels: tuple[str, ...] = ("kv_dtype",)
    keyed: tuple[str, ...] = ("layer",)
    axes: tuple[Axis, ...] = (
        Axis("batch", "batch", ("query", "context", "spread", "heads", "kv_heads", *HEAD)),
        Axis("query", "query",
             ("batch", "context", "spread", "heads", "kv_heads", "windowed", *HEAD)),
        Axis("context", "context",
             ("batch", "query", "spread", "heads", "kv_heads", "windowed", *HEAD)),
        Axis("heads", "heads", ("batch", "query", "context", "spread", "kv_heads", *HEAD)),
        Axis("groups", "heads", ("batch", "query", "context", "spread", "group", *HEAD)),
        Axis("kv_heads", "kv_heads", ("batch", "query", "context", "spread", "heads", *HEAD)),
    )  # fmt: skip

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in FLOPs of whole tiles, bytes, tiles, and the longest walk over keys."""
        heads, kv_heads, size = (number(rows, n) for n in ("heads", "kv_heads", "head_dim"))
        window, stored = number(rows, "window", 0), width(rows, "kv_dtype")
        r = requests_of(rows)
        own_window = window[r.row]
        batch, query_sum = r.sum(np.ones_like(r.query)), r.sum(r.query)
        query, context = query_sum / batch, r.sum(r.context) / batch
        tile_rows = np.where(size <= NARROW, 192.0, TILE)
        queries = np.maximum(tile_rows / (heads / kv_heads), 1)[r.row]
        block = key_block(size)
        lengths = (r.query / block[r.row], r.context / block[r.row], own_window / block[r.row])
        tiles_each, walked, walk = _tiles(*lengths, queries / block[r.row])
        tiles = r.sum(tiles_each)
        pairs, blocks = r.sum(pairs_of(r.query, r.context, own_window)), r.max(walk)
        keys = r.sum(keys_of(r.query, r.context, own_window))
        moved = 4 * query_sum * heads * size + 2 * kv_heads * size * (2 * query_sum + keys * stored)
        windowed = ((window > 0) & (r.max(r.query + r.context) > window)).astype(float)
        work = {
            "launch": np.ones_like(heads),
            "flops": 4 * pairs * heads * size,
            "tile_flops": 4 * r.sum(walked) * block * tile_rows * kv_heads * size,
            "bytes": moved,
            "tiles": kv_heads * tiles,
            "walk": blocks,
        }
        paired = any(PAIRED in name for name in set(label(rows, "backend")))
        if paired:
            pair_walked = _tiles(*lengths, PAIR / block[r.row])[1]
            work["pair_flops"] = 4 * r.sum(pair_walked) * block * PAIR * heads * size
        spread = r.sum(r.query**2) / batch / query**2 - 1
        features = {
            "bucket": np.ceil(octaves(query)),
            "batch": octaves(batch),
            "query": octaves(query),
            "context": octaves(context),
            "heads": octaves(heads),
            "kv_heads": octaves(kv_heads),
            "head_dim": size,
            "window": octaves(np.where(window > 0, window, 2.0**20)),
            "stored": stored,
            "flops": octaves(work["flops"]),
            "bytes": octaves(moved),
            "queries": octaves(query_sum),
            "batch_heads": octaves(batch * heads),
            "group": octaves(heads / kv_heads),
            "windowed": windowed,
            "windows": np.where(window > 0, np.clip(query / np.maximum(window, 1), 0, 4), 0),
            "tile_flops": octaves(work["tile_flops"]),
            "walk": octaves(blocks),
            "spread": spread,
        }
        if paired:
            features["pair_flops"] = octaves(work["pair_flops"])
        for tile in (64, TILE, PAIR) if paired else (64, TILE):
            count = heads * r.sum(np.ceil(r.query / tile))
            features[f"waves_{tile}"], features[f"tail_{tile}"] = waves(count, device.sms)
        features["packed_waves"], features["packed_tail"] = waves(kv_heads * tiles, device.sms)
        features["packed_padding"] = kv_heads * tiles * tile_rows / (query_sum * heads)
        place = {
            "batch": batch, "query": query, "context": context, "spread": spread, "heads": heads,
            "kv_heads": kv_heads, "group": heads / kv_heads, "head_dim": size, "window": window,
            "windowed": windowed, "kv_dtype": label(rows, "kv_dtype"),
        }  # fmt: skip
        return Shape(work, features, place)


def _tiles(
    query: Floats, context: Floats, window: Floats, queries: Floats
) -> tuple[Floats, Floats, Floats]:
    """Of each request and KV head: tiles, key blocks that they walk over, those of the longest.

    Lengths are in key blocks. A tile holds ``queries``, with all heads of the KV head. Tile t
    walks up to its last query, from the first block that its window reaches; ends inside a
    block are taken at their mean.

    >>> tiles, blocks, walk = _tiles(*(np.array([x]) for x in (2.0, 1.0, 0.0, 1.0)))
    >>> tiles.item(), blocks.item(), walk.item()  # 2 blocks, then 3
    (2.0, 5.0, 3.0)
    """
    part = (1 - np.minimum(queries, 1)) / 2
    tiles, cached = np.ceil(query / queries), context + part
    reach = np.where(window > 0, np.ceil(window + queries), np.inf)
    walk = np.minimum(reach, cached + tiles * queries)
    growing = np.clip((walk - cached) / queries, 0, tiles)  # tiles that still walk from block 0
    blocks = growing * cached + queries * growing * (growing + 1) / 2 + (tiles - growing) * walk
    return tiles, blocks, walk
