"""Decode attention: one query a request, over its cached keys.

Bound by reading keys and values once: 2 keys kv_heads head_dim bytes of the cache's type
(FlashDecoding, PyTorch blog, 2023-10); FLOPs 4 keys heads head_dim. A thread block serves the
query heads of one KV head of one request, so batch x kv_heads blocks fill the device in waves.

>>> rows = pd.DataFrame({"batch": [2], "query_tokens": [1], "context_tokens": [99], "heads": [8],
...     "kv_heads": [1], "head_dim": [64], "window": [0], "kv_dtype": ["fp8"]})
>>> AttentionDecode().shape(rows, Device(132, 1e15)).work["bytes"].item()  # 200 keys, 16 queries
29696.0
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.attention import key_block, keys_of, narrow_key_block, requests_of
from simulator.operators.attention_prefill import HEAD
from simulator.operators.base import Device, Shape, label, number, octaves, waves, width
from simulator.operators.lines import Axis

Floats = npt.NDArray[np.float64]

MOST_SPLITS = 128
PACKED_HEADS = 64  # query heads of one KV head that share a thread block


class AttentionDecode:
    """The ``attention_decode`` family; requests may differ in context."""

    labels: tuple[str, ...] = ("kv_dtype",)
    keyed: tuple[str, ...] = ("layer",)
    axes: tuple[Axis, ...] = (
        Axis("batch", "batch", ("context", "spread", "heads", "kv_heads", *HEAD)),
        Axis("context", "context", ("batch", "spread", "heads", "kv_heads", "windowed", *HEAD)),
        Axis("heads", "heads", ("batch", "context", "spread", "kv_heads", *HEAD)),
        Axis("groups", "heads", ("batch", "context", "spread", "group", *HEAD)),
        Axis("kv_heads", "kv_heads", ("batch", "context", "spread", "heads", *HEAD)),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in bytes, FLOPs of padded heads, and waves of thread blocks."""
        heads, kv_heads, size = (number(rows, n) for n in ("heads", "kv_heads", "head_dim"))
        window, stored = number(rows, "window", 0), width(rows, "kv_dtype")
        r = requests_of(rows)
        own_window = window[r.row]
        batch, keys = (
            r.sum(v) for v in (np.ones_like(r.query), keys_of(r.query, r.context, own_window))
        )
        block = np.where(stored < 2, narrow_key_block(size), key_block(size))
        walk = _blocks(r.context + r.query, own_window, block[r.row])
        each = r.sum(walk) / batch
        walked = block * r.sum(walk)
        context = (r.sum(r.context) + batch) / batch  # with its own
        windowed = ((window > 0) & (r.max(r.context) + 1 > window)).astype(float)
        row_bytes = 2 * kv_heads * size * stored
        groups = np.ceil(heads / kv_heads / PACKED_HEADS)
        blocks = batch * kv_heads * groups
        octave, tail = waves(blocks, device.sms)
        rounds = np.ceil(blocks / device.sms)
        splits = splits_of(blocks, each, device.sms)
        split_octave, split_tail = waves(blocks * splits, device.sms)
        split_walk = np.ceil(each / splits)
        work = {
            "launch": np.ones_like(heads),
            "bytes": keys * row_bytes + 4 * batch * heads * size,
            "waves": rounds,
            "wave_width": rounds * size,
            "split_walk": np.ceil(blocks * splits / device.sms) * split_walk * size * stored,
            "combined": np.where(splits > 1, batch * heads * size * splits, 0),
            "padded_flops": 4 * walked * kv_heads * groups * PACKED_HEADS * size,
        }
        features = {
            "walk": octaves(walked / batch),
            "bucket": np.ceil(octaves(context)),
            "batch": octaves(batch),
            "context": octaves(context),
            "heads": octaves(heads),
            "kv_heads": octaves(kv_heads),
            "head_dim": size,
            "window": octaves(np.where(window > 0, window, 2.0**20)),
            "stored": stored,
            "read": octaves(walked * row_bytes),
            "cached": octaves(batch * context * row_bytes),
            "blocks": octaves(blocks),
            "batch_heads": octaves(batch * heads),
            "group": octaves(heads / kv_heads),
            "longest": octaves(r.max(walk)),
            "waves": octave,
            "tail": tail,
            "windowed": windowed,
            "splits": octaves(splits),
            "split_walk": octaves(split_walk),
            "split_waves": split_octave,
            "split_tail": split_tail,
            "all_keys": octaves(walked * kv_heads),
        }
        spread = r.sum((r.context + 1) ** 2) / batch / context**2 - 1
        features["spread"] = spread
        place = {
            "batch": batch, "context": context, "spread": spread, "heads": heads,
            "kv_heads": kv_heads, "group": heads / kv_heads, "head_dim": size, "window": window,
            "windowed": windowed, "kv_dtype": label(rows, "kv_dtype"),
        }  # fmt: skip
        return Shape(work, features, place)


def _blocks(keys: Floats, window: Floats, block: Floats) -> Floats:
    """Key blocks that a query walks over: a window may begin and end inside one.

    >>> keys, window = np.array([128.0, 256.0, 1000.0]), np.array([128.0, 128.0, 0.0])
    >>> _blocks(keys, window, np.full(3, 128.0)).tolist()
    [1.0, 2.0, 8.0]
    """
    reach = np.where(window > 0, np.ceil(window / block) + 1, np.inf)
    return np.minimum(np.ceil(keys / block), reach)


def splits_of(blocks: Floats, keys: Floats, sms: int) -> Floats:
    """Parts that the keys of a request are cut into so that thread blocks fill the device.

    ``blocks`` thread blocks unsplit, each over ``keys`` key blocks: the fewest parts that fill
    waves to 85 % of the best filling; 1 where most of the device is busy or keys are few
    (FlashAttention-3, ``heuristics.h``, num_splits_heuristic).

    >>> splits_of(np.array([8.0, 8.0, 120.0]), np.array([64.0, 4.0, 64.0]), 132).tolist()
    [15.0, 1.0, 1.0]
    """
    tried = np.arange(1.0, MOST_SPLITS + 1)
    filled = blocks[:, None] * tried / sms
    share = filled / np.ceil(filled)
    share[tried > np.maximum(np.minimum(keys, sms), 1)[:, None]] = 0
    fewest = 1.0 + np.argmax(share >= 0.85 * share.max(axis=1, keepdims=True), axis=1)
    found: Floats = np.where((blocks >= 0.8 * sms) | (keys <= 4), 1.0, fewest)
    return found
