"""The schedule of thread blocks: against a plain one, its bounds, and what the cache keeps."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from simulator.operators.attention import Requests
from simulator.operators.attention_mixed import AttentionMixed
from simulator.operators.base import Device
from simulator.operators.schedule import OVERHEAD, Tiling, scheduled

Floats = npt.NDArray[np.float64]
KEYS = 128


def one_row(
    walk: list[float], heads: int, group: int, cached: float, sms: int
) -> tuple[float, float]:
    """Requests of one tile each."""
    ends, read = rows_of([0] * len(walk), walk, heads, group, cached, sms)
    return float(ends[0]), float(read[0])


def rows_of(
    row: list[int], walk: list[float], heads: int, group: int, cached: float, sms: int
) -> tuple[Floats, Floats]:
    rows, ones = max(row) + 1, np.ones(len(row))
    requests = Requests(rows, np.array(row), ones, ones, np.array(walk) * KEYS - 1)
    sizes = (np.full(rows, float(x)) for x in (np.inf, heads, group, cached))
    return scheduled(requests, *sizes, Tiling(64, KEYS, sms))


@pytest.mark.parametrize("seed", range(20))
def test_the_end_is_that_of_a_plain_list_schedule(seed: int) -> None:
    draw = np.random.default_rng(seed)
    sms, heads = int(draw.integers(1, 9)), int(draw.integers(1, 5))
    walk = draw.integers(1, 40, size=draw.integers(1, 30)).astype(float)
    free = [0.0] * sms
    for job in np.tile(walk + OVERHEAD, heads):
        heapq.heapreplace(free, free[0] + job)
    ends, read = one_row(list(walk), heads, 1, np.inf, sms)
    assert ends == max(free)
    load, longest = heads * float((walk + OVERHEAD).sum()) / sms, float(walk.max()) + OVERHEAD
    assert max(load, longest) <= ends <= load + longest  # Graham's bound
    assert read == heads * walk.sum()  # a KV head of its own for each


def test_heads_of_equal_requests_run_abreast_and_share_what_they_read() -> None:
    equal, unequal = [50.0] * 4, [20.0, 80.0, 20.0, 80.0]
    shared = one_row(equal, 4, 4, 10, 16)  # all heads at once
    drifted = one_row(unequal, 4, 4, 10, 2)  # a head follows the other
    assert shared == (50.5, 200.0)
    assert drifted[1] == 800.0
    assert one_row(unequal, 4, 4, 1000, 2)[1] == 200.0  # unless the cache holds all requests


def test_rows_do_not_touch_each_other() -> None:
    ends, read = rows_of([0, 0, 1, 2, 2], [3.0, 9.0, 4.0, 3.0, 9.0], 4, 2, 5, 3)
    assert (ends[0], read[0]) == (ends[2], read[2]) == one_row([3.0, 9.0], 4, 2, 5, 3)
    assert (ends[1], read[1]) == one_row([4.0], 4, 2, 5, 3)


def test_equal_requests_may_be_counted() -> None:
    one, four = np.ones(1), np.full(4, 7.0)
    sizes = [np.array([float(x)]) for x in (np.inf, 4, 2, 5)]
    counted = Requests(1, np.zeros(1, np.int64), 4 * one, 7 * one, 300 * one)
    listed = Requests(1, np.zeros(4, np.int64), np.ones(4), four, np.full(4, 300.0))
    assert scheduled(counted, *sizes, Tiling(64, KEYS, 3)) == scheduled(
        listed, *sizes, Tiling(64, KEYS, 3)
    )


def test_a_window_bounds_the_walk_and_tiles_of_a_chunk_share_their_keys() -> None:
    one = np.ones(1)
    chunk = Requests(1, np.zeros(1, np.int64), one, 256 * one, 1280 * one)
    sizes = [np.array([float(x)]) for x in (1, 1, 1e9)]
    ends, read = scheduled(chunk, np.full(1, 3.0), *sizes, Tiling(64, 128, 4))
    assert (ends.item(), read.item()) == (3 + OVERHEAD, 3.0)
    ends, read = scheduled(chunk, np.full(1, np.inf), *sizes, Tiling(64, 128, 4))
    assert (ends.item(), read.item()) == (12 + OVERHEAD, 11.0)


def batch(queries: list[int], contexts: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {"query_lens": [queries], "context_lens": [contexts], "heads": [32], "kv_heads": [8],
         "head_dim": [128], "window": [0], "kv_dtype": ["bfloat16"]}
    )  # fmt: skip


def test_one_long_context_among_short_ones_takes_longer_than_the_mean() -> None:
    device = Device(128, 1e15, 72e6)
    work = [
        AttentionMixed().shape(batch([64] + [1] * 16, [0, *contexts]), device).work
        for contexts in ([8191] + [511] * 15, [991] * 16)
    ]
    loads = [w["load"].item() for w in work]
    assert loads[0] == pytest.approx(loads[1], rel=0.05)
    assert work[0]["makespan"].item() > 1.5 * work[1]["makespan"].item()
    assert work[0]["makespan"].item() >= 64 + OVERHEAD  # the long one's own walk
