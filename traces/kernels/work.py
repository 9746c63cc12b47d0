"""The least work an operator's row must have done: FLOPs, bytes of memory, bytes on a link.

Lower bounds from the shape alone, to be held against a device's peaks: a row that did more
work in its time than the device can do was not measured on it, or is in another unit. NaN
where the shape does not tell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Floats = npt.NDArray[np.float64]

# Type -> bytes of a weight, bytes of an activation, peak that bounds the arithmetic
DTYPES: dict[str, tuple[float, float, str]] = {
    "float32": (4, 4, "fp32"),
    "float16": (2, 2, "bf16"),
    "bfloat16": (2, 2, "bf16"),
    "int8_wo": (1, 2, "bf16"),
    "int4_wo": (0.5, 2, "bf16"),
    "w4a16_mxfp4": (0.5, 2, "bf16"),
    "sq": (1, 1, "int8"),
    "int8": (1, 1, "int8"),
    "fp8": (1, 1, "fp8"),
    "fp8_e4m3": (1, 1, "fp8"),
    "fp8_block": (1, 1, "fp8"),
    "w4afp8": (0.5, 1, "fp8"),
    "w4a8_mxfp4_mxfp8": (0.5, 1, "fp8"),
    "nvfp4": (0.5, 0.5, "fp4"),
    "fp4": (0.5, 0.5, "fp4"),
}
OUTPUT_BYTES = 2
# DeepSeek's MLA: a prefill head computes 192 + 128 wide, a decode head 576 + 512 wide, and a
# token caches 576 values (DeepSeek-V2, arXiv:2405.04434, section 2.1)
MLA_PREFILL_WIDTH, MLA_DECODE_WIDTH, MLA_CACHED = 320, 1088, 576
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")


def numbers(table: pa.Table, name: str) -> Floats:
    """A column as floats, NaN where it is null or absent."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    values: Floats = table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def widths(table: pa.Table, column: str) -> tuple[Floats, Floats]:
    """Bytes of a weight and of an activation of the type in ``column``, NaN if unknown."""
    if column not in table.column_names:
        return np.full(len(table), np.nan), np.full(len(table), np.nan)
    encoded = table.column(column).combine_chunks().dictionary_encode()
    unknown = (np.nan, np.nan, "")
    names = encoded.dictionary.to_pylist()
    known = np.array([unknown[:2], *(DTYPES.get(n, unknown)[:2] for n in names)], np.float64)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False) + 1
    return known[codes, 0], known[codes, 1]


def query_key_pairs(table: pa.Table) -> tuple[Floats, Floats]:
    """Pairs of a query and a key it attends to (causal, windowed), and keys cached, per row.

    >>> shape = {"batch": [2], "query_tokens": [3], "context_tokens": [10], "window": [0]}
    >>> pairs, keys = query_key_pairs(pa.table(shape))
    >>> pairs.item(), keys.item()  # each of two: 11 + 12 + 13
    (72.0, 26.0)
    """
    batch, query, context = (numbers(table, n) for n in ("batch", "query_tokens", "context_tokens"))
    window = np.nan_to_num(numbers(table, "window"))
    pairs, keys = _attended(query, context, window)
    pairs, keys = batch * pairs, batch * keys
    if "query_lens" in table.column_names:
        lens = table.column("query_lens").combine_chunks()
        row = pc.list_parent_indices(lens).to_numpy()
        queries, contexts = (
            table.column(n).combine_chunks().flatten().to_numpy().astype(float)
            for n in ("query_lens", "context_lens")
        )
        listed = lens.is_valid().to_numpy(zero_copy_only=False)
        found = _attended(queries, contexts, window[row])
        for total, each in zip((pairs, keys), found, strict=True):
            total[listed] = np.bincount(row, each, len(table))[listed]
    return pairs, keys


def _attended(query: Floats, context: Floats, window: Floats) -> tuple[Floats, Floats]:
    """Query i of q sees min(window, context + i) keys; the window 0 hides none."""
    seen = np.where(window > 0, window, np.inf)
    growing = np.clip(seen - context, 0, query)  # queries that still see every key
    full = np.where(window > 0, window, 0) * (query - growing)
    pairs = growing * context + growing * (growing + 1) / 2 + full
    return pairs, np.minimum(context + query, seen + query)


def least_work(table: pa.Table) -> dict[str, Floats]:
    """``flops``, ``memory_bytes`` and ``link_bytes`` of each row, NaN where not told."""
    operator = np.array(table.column("operator").to_pylist(), object)
    work = {name: np.full(len(table), np.nan) for name in ("flops", "memory_bytes", "link_bytes")}
    families: dict[str, Any] = {
        "linear": _linear,
        "grouped_gemm": _grouped_gemm,
        **dict.fromkeys(("attention_prefill", "attention_decode", "attention_mixed"), _attention),
        **dict.fromkeys(("mla_prefill", "mla_decode"), _mla),
        **dict.fromkeys(COLLECTIVES, _collective),
    }
    for bound in dict.fromkeys(families.values()):
        own = np.isin(operator, [name for name, b in families.items() if b is bound])
        if own.any():
            for kind, values in bound(table).items():
                work[kind][own] = values[own]
    return work


def _linear(table: pa.Table) -> dict[str, Floats]:
    m, n, k = (numbers(table, name) for name in "mnk")
    weight, activation = widths(table, "dtype")
    moved = n * k * weight + m * k * activation + m * n * OUTPUT_BYTES
    return {"flops": 2 * m * n * k, "memory_bytes": moved}


def _grouped_gemm(table: pa.Table) -> dict[str, Floats]:
    """Two GEMMs at least (three where gated) over the pairs routed here.

    Where they are not recorded, the mean over the ranks: the rank timed has no fewer.
    """
    mean = (
        numbers(table, "tokens")
        * numbers(table, "top_k")
        * numbers(table, "local_experts")
        / numbers(table, "experts")
    )
    recorded = numbers(table, "routed_tokens")
    pairs = np.where(np.isnan(recorded), mean, recorded)
    expert = 2 * numbers(table, "hidden") * numbers(table, "inter") / numbers(table, "tp")
    weight, _ = widths(table, "dtype")
    moved = numbers(table, "active_experts") * expert * weight
    return {"flops": 2 * pairs * expert, "memory_bytes": moved}


def _attention(table: pa.Table) -> dict[str, Floats]:
    """A head of 192 may come with values of 128 (MLA after its up-projection, MiMo-V2)."""
    pairs, keys = query_key_pairs(table)
    heads, width = numbers(table, "heads"), numbers(table, "head_dim")
    both = width + np.where(width == 192, 128, width)  # of a key and its value
    cached, _ = widths(table, "kv_dtype")
    queries = numbers(table, "query_sum") * heads * both * OUTPUT_BYTES  # in and out
    return {
        "flops": 2 * heads * both * pairs,
        "memory_bytes": keys * numbers(table, "kv_heads") * both * cached + queries,
    }


def _mla(table: pa.Table) -> dict[str, Floats]:
    pairs, keys = query_key_pairs(table)
    decode = pc.equal(table.column("operator"), "mla_decode").to_numpy()
    width = np.where(decode, MLA_DECODE_WIDTH, MLA_PREFILL_WIDTH)
    cached, _ = widths(table, "kv_dtype")
    return {
        "flops": 2 * numbers(table, "heads") * width * pairs,
        "memory_bytes": np.where(decode, keys * MLA_CACHED * cached, np.nan),
    }


def _collective(table: pa.Table) -> dict[str, Floats]:
    """What a rank must send or receive: all but its own share of the larger buffer.

    An all-reduce inside a switch moves the buffer once, one of point to point all of it.
    """
    ranks, size = numbers(table, "ranks"), numbers(table, "bytes")
    point = pc.equal(table.column("operator"), "send_recv").to_numpy()
    return {"link_bytes": np.where(point, size, size * (ranks - 1) / ranks)}
