"""The least work of an operator, against counts made by hand or by enumeration."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from traces.kernels.base import homogeneous, joined, kernel_rows, mixed_lengths
from traces.kernels.work import least_work, query_key_pairs

KEYS = {"timing": "kernel", "device": "h100_sxm", "engine": "e", "engine_version": "1"}


def one(**columns: object) -> pa.Table:
    return kernel_rows({**KEYS, "duration_s": 1.0, "dtype": "bfloat16", **columns}, 1)


def work(**columns: object) -> dict[str, float]:
    return {name: values.item() for name, values in least_work(one(**columns)).items()}


def test_a_gemm() -> None:
    found = work(operator="linear", m=3, n=5, k=7)
    assert found["flops"] == 2 * 3 * 5 * 7
    assert found["memory_bytes"] == 2 * (5 * 7 + 3 * 7 + 3 * 5)
    assert np.isnan(found["link_bytes"])
    quantised = work(operator="linear", m=3, n=5, k=7, dtype="nvfp4")
    assert quantised["memory_bytes"] == (5 * 7 + 3 * 7) / 2 + 2 * 3 * 5


@pytest.mark.parametrize("window", [0, 1, 4, 12, 30])
@pytest.mark.parametrize(("query", "context"), [(1, 0), (5, 0), (1, 20), (6, 10), (9, 40)])
def test_pairs_are_what_enumeration_gives(query: int, context: int, window: int) -> None:
    seen = [context + i for i in range(1, query + 1)]
    expected = sum(min(window, s) if window else s for s in seen)
    pairs, keys = query_key_pairs(
        one(operator="x", **homogeneous(2, query, context), window=window)
    )
    assert pairs.item() == 2 * expected
    assert keys.item() <= 2 * (query + context)


def test_listed_lengths_count_as_their_requests_do() -> None:
    mixed = one(operator="x", **mixed_lengths([[8, 1, 1]], [[4, 100, 50]]))
    apart = [one(operator="x", **homogeneous(1, q, c)) for q, c in [(8, 4), (1, 100), (1, 50)]]
    together = joined([mixed, *apart])
    pairs, keys = query_key_pairs(together)
    assert pairs[0] == pairs[1:].sum()
    assert keys[0] == keys[1:].sum() == 12 + 101 + 51


def test_attention_reads_the_cache_in_its_type() -> None:
    shape = {**homogeneous(2, 1, 99), "heads": 32, "kv_heads": 8, "head_dim": 128, "window": 0}
    found = work(operator="attention_decode", kv_dtype="fp8", **shape)
    assert found["flops"] == 4 * 2 * 32 * 128 * 100
    assert found["memory_bytes"] == 2 * (2 * 100 * 8 * 128) + 2 * 2 * 32 * 128 * 2


def test_grouped_gemm_counts_what_was_routed_here() -> None:
    layer = {"tokens": 64, "experts": 16, "local_experts": 4, "top_k": 2, "hidden": 8, "inter": 6,
             "tp": 2, "ep": 4}  # fmt: skip
    mean = work(operator="grouped_gemm", **layer)
    assert mean["flops"] == 2 * (64 * 2 / 4) * (2 * 8 * 3)
    assert np.isnan(mean["memory_bytes"])
    known = work(operator="grouped_gemm", **layer, routed_tokens=10, active_experts=3)
    assert known["flops"] == 2 * 10 * (2 * 8 * 3)
    assert known["memory_bytes"] == 3 * (2 * 8 * 3) * 2


def test_mla_decode_reads_the_latent_cache() -> None:
    found = work(operator="mla_decode", **homogeneous(4, 1, 999), heads=16, kv_dtype="bfloat16")
    assert found["memory_bytes"] == 4 * 1000 * 576 * 2
    assert found["flops"] == 2 * 16 * 1088 * 4 * 1000


def test_links_carry_all_but_a_ranks_own_share() -> None:
    assert work(operator="all_gather", bytes=800, ranks=8)["link_bytes"] == 700
    assert work(operator="send_recv", bytes=800, ranks=2)["link_bytes"] == 800


def test_what_the_shape_does_not_tell_stays_open() -> None:
    unknown = work(operator="linear", m=1, n=1, k=1, dtype="posit")
    assert unknown["flops"] == 2
    assert np.isnan(unknown["memory_bytes"])
    assert all(np.isnan(v) for v in work(operator="sampling", tokens=4).values())
