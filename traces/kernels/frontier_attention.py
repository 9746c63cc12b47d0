"""Frontier's attention profiles: prefill and decode kernels of FlashInfer, each timed apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import TraceError
from traces.kernels.base import homogeneous, mixed_lengths
from traces.kernels.frontier_profile import Columns, Mask, Profile

LENGTHS = ("seq_lens", "prefill_seq_lens", "prefill_kv_cache_sizes", "decode_kv_cache_sizes")
TRUE_MIXED = "true_mixed"  # a prefill and a decode kernel, one after the other


def attention(file: Path) -> tuple[Profile, list[Columns]]:
    """Rows of prefill, decode and KV writes; a mixed batch gives one of each kind.

    The context of a decode does not count the new token. Raises TraceError.
    """
    profile = Profile(
        file,
        ("attn_prefill", "attn_decode", "attn_kv_cache_save", "attn_input_reshape"),
        (
            "n_embd",
            "n_q_head",
            "n_kv_head",
            "num_tensor_parallel_workers",
            "batch_size",
            "prefill_chunk_size",
            "kv_cache_size",
        ),
        ("is_prefill", "attention_backend"),
        optional_texts=("mode", *LENGTHS),
    )
    # a view: it takes no time at all where kernels are timed
    timing = profile.timing(("attn_input_reshape",), ())
    prefill = profile.rows["is_prefill"].to_numpy(str) == "True"
    mixed = (profile.rows["mode"] == TRUE_MIXED).to_numpy(bool)
    queries, contexts = _prefill_lengths(profile, prefill)
    decodes = _decode_contexts(profile, prefill, mixed)
    ones = [[1] * len(c) for c in decodes]
    head = _head(profile, timing)
    tables = [
        *_rows(profile, "attention_prefill", "attn_prefill", prefill, queries, contexts, head),
        *_rows(profile, "attention_decode", "attn_decode", ~prefill | mixed, ones, decodes, head),
    ]
    tokens = np.array([sum(q) + len(c) for q, c in zip(queries, decodes, strict=True)])
    return profile, [*tables, _kv_write(profile, head, tokens)]


def _head(profile: Profile, timing: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    ranks = profile.ints("num_tensor_parallel_workers")
    backend = profile.rows["attention_backend"].str.removeprefix("AttentionBackend.").str.lower()
    return {
        "heads": profile.ints("n_q_head") // ranks,
        "kv_heads": np.maximum(1, profile.ints("n_kv_head") // ranks),
        "head_dim": profile.head_dim(),
        "kv_dtype": profile.dtype,
        "dtype": profile.dtype,
        "backend": backend.to_numpy(object),
        "timing": timing,
    }


def _prefill_lengths(profile: Profile, prefill: Mask) -> tuple[list[list[int]], list[list[int]]]:
    """Query and context lengths of each row's prefills; empty for decode rows."""
    batch, chunk = profile.ints("batch_size"), profile.ints("prefill_chunk_size")
    cached = profile.ints("kv_cache_size")
    listed = [_lists(profile, name) for name in LENGTHS[:3]]
    queries: list[list[int]] = []
    contexts: list[list[int]] = []
    for row, (lengths, mixed, mixed_cached) in enumerate(zip(*listed, strict=True)):
        if not prefill[row]:
            queries.append([])
            contexts.append([])
        elif mixed is not None:
            queries.append(mixed)
            contexts.append(mixed_cached or [0] * len(mixed))
        else:
            queries.append(lengths or [int(chunk[row])] * int(batch[row]))
            contexts.append([int(cached[row])] * int(batch[row]))
        if len(queries[-1]) != len(contexts[-1]):
            raise TraceError(
                f"{profile.file}:{row + 2}: {len(queries[-1])} query lengths for "
                f"{len(contexts[-1])} requests"
            )
    return queries, contexts


def _decode_contexts(profile: Profile, prefill: Mask, mixed: Mask) -> list[list[int]]:
    batch, cached = profile.ints("batch_size"), profile.ints("kv_cache_size")
    listed = _lists(profile, "decode_kv_cache_sizes")
    return [
        (listed[row] or []) if mixed[row] else [] if prefill[row] else [int(cached[row])] * int(n)
        for row, n in enumerate(batch)
    ]


def _lists(profile: Profile, name: str) -> list[list[int] | None]:
    """A column of JSON lists; None where a row has none."""
    found: list[list[int] | None] = []
    for row, text in enumerate(profile.rows[name].tolist()):
        if not text:
            found.append(None)
            continue
        try:
            found.append([int(value) for value in json.loads(text)])
        except (ValueError, TypeError):
            raise TraceError(
                f"{profile.file}:{row + 2}: {name} is {text!r}: expected a list of lengths"
            ) from None
    return found


def _rows(
    profile: Profile,
    operator: str,
    operation: str,
    mask: Mask,
    queries: Sequence[Sequence[int]],
    contexts: Sequence[Sequence[int]],
    head: dict[str, npt.NDArray[Any]],
) -> list[Columns]:
    """Two sets of rows: batches of equal requests, and the others with their lengths listed."""
    mask = mask & profile.timed(operation)
    equal = np.array(
        [len(set(q)) == len(set(c)) == 1 for q, c in zip(queries, contexts, strict=True)], bool
    )
    alike, others = (np.flatnonzero(rows).tolist() for rows in (mask & equal, mask & ~equal))
    shapes = {
        "alike": homogeneous(
            [len(queries[i]) for i in alike],
            [queries[i][0] for i in alike],
            [contexts[i][0] for i in alike],
        ),
        "others": mixed_lengths([queries[i] for i in others], [contexts[i] for i in others]),
    }
    return [
        {
            "operator": operator,
            "window": 0,
            **{name: values[rows] for name, values in head.items()},
            **shapes[which],
            **profile.times(operation, rows),
        }
        for which, rows in (("alike", alike), ("others", others))
    ]


def _kv_write(
    profile: Profile, head: dict[str, npt.NDArray[Any]], tokens: npt.NDArray[np.int64]
) -> Columns:
    rows = profile.timed("attn_kv_cache_save")
    return {
        "operator": "elementwise",
        "layer": "kv_cache_save",
        "tokens": tokens[rows],
        "hidden": (2 * head["kv_heads"] * head["head_dim"])[rows],
        **{name: head[name][rows] for name in ("dtype", "backend", "timing")},
        **profile.times("attn_kv_cache_save", rows),
    }
