"""Multi-head latent attention, alone or with its projections (layer ``mla_module``).

Prefill computes heads of 192 + 128 after the up-projection, decode absorbs it and works on the
latent of 576 (512 of it values) that a token caches (DeepSeek-V2, arXiv:2405.04434, section
2.1). The module's projections are those of DeepSeek-V3's config.json: hidden 7168, q_lora 1536,
kv_lora 512, 128 + 64 wide query heads, 128 wide values.

>>> rows = pd.DataFrame({"operator": ["mla_decode"], "batch": [1], "query_tokens": [1],
...     "context_tokens": [99], "heads": [16], "kv_dtype": ["bfloat16"], "dtype": ["bfloat16"]})
>>> Mla().shape(rows, Device(132, 1e15)).work["bytes"].item()  # 100 tokens of 576 values
115200.0
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.attention import pairs_of, requests_of
from simulator.operators.base import Device, Shape, label, number, octaves, waves, width
from simulator.operators.lines import Axis
from traces.kernels.work import MLA_CACHED, MLA_DECODE_WIDTH, MLA_PREFILL_WIDTH

Floats = npt.NDArray[np.float64]

HIDDEN, Q_LORA, KV_LORA, ROPE, WIDE, VALUE = 7168, 1536, 512, 64, 192, 128
PACKED_HEADS = 64
TILE = 128


class Mla:
    """The families ``mla_prefill`` and ``mla_decode``."""

    labels: tuple[str, ...] = ("kv_dtype",)
    keyed: tuple[str, ...] = ("layer", "attention_dtype")
    axes: tuple[Axis, ...] = (
        Axis("batch", "batch", ("query", "context", "heads", "kv_dtype")),
        Axis("query", "query", ("batch", "context", "heads", "kv_dtype")),
        Axis("context", "context", ("batch", "query", "heads", "kv_dtype")),
        Axis("heads", "heads", ("batch", "query", "context", "kv_dtype")),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in FLOPs of attention and projections, and bytes of weights and cache."""
        heads, stored = number(rows, "heads"), width(rows, "kv_dtype")
        r = requests_of(rows)
        none = np.zeros_like(r.query)
        batch, tokens = r.sum(np.ones_like(r.query)), r.sum(r.query)
        query, context = tokens / batch, r.sum(r.context) / batch
        pairs = r.sum(pairs_of(r.query, r.context, none))
        keys = r.sum(r.context + r.query)
        decode = (label(rows, "operator") == "mla_decode") | (query == 1)
        packed = np.where(decode, np.ceil(heads / PACKED_HEADS) * PACKED_HEADS, heads)
        wide = np.where(decode, MLA_DECODE_WIDTH, MLA_PREFILL_WIDTH)
        tiles = heads * r.sum(np.ceil(r.query / TILE))
        weights = _projections(heads)
        work = {
            "launch": np.ones_like(heads),
            "flops": 2 * heads * wide * pairs,
            "padded_flops": 2 * packed * wide * pairs,
            "bytes": keys * MLA_CACHED * stored,
            "projected": 2 * tokens * weights,
            "weights": weights * width(rows, "dtype"),
            "unpacked": np.where(decode, 0, tokens * heads * MLA_PREFILL_WIDTH),
            "tiles": np.where(decode, batch * np.ceil(heads / PACKED_HEADS), tiles),
        }
        octave, tail = waves(tiles, device.sms)
        features = {
            "bucket": np.ceil(octaves(query + context)),
            "batch": octaves(batch),
            "query": octaves(query),
            "context": octaves(context),
            "heads": octaves(heads),
            "stored": stored,
            "flops": octaves(work["flops"]),
            "bytes": octaves(work["bytes"]),
            "tokens": octaves(tokens),
            "keys": octaves(keys),
            "batch_heads": octaves(batch * heads),
            "waves": octave,
            "tail": tail,
        }
        place = {
            "batch": batch, "query": query, "context": context, "heads": heads,
            "kv_dtype": label(rows, "kv_dtype"),
        }  # fmt: skip
        return Shape(work, features, place)


def _projections(heads: Floats) -> Floats:
    """Weights of q_a, kv_a, q_b, kv_b and o for ``heads`` heads."""
    down = HIDDEN * (Q_LORA + KV_LORA + ROPE)
    up = heads * (Q_LORA * WIDE + KV_LORA * 2 * VALUE)
    return down + up + heads * VALUE * HIDDEN
