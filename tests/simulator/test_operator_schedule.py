"""The schedule of thread blocks: against a plain one, its bounds, and what the cache keeps."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from simulator.operators.attention_mixed import AttentionMixed
from simulator.operators.base import Device
from simulator.operators.schedule import OVERHEAD, scheduled

Floats = npt.NDArray[np.float64]


def one_row(
    walk: list[float], heads: int, group: int, cached: float, sms: int
) -> tuple[float, float]:
    """Requests of one tile each."""
    n = len(walk)
    sizes = (np.array([float(x)]) for x in (heads, group, cached))
    ends, read = scheduled(np.zeros(n, np.int64), np.ones(n), np.array(walk), *sizes, sms)
    return float(ends[0]), float(read[0])


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
    row = np.array([0, 0, 1, 2, 2])
    walk = np.array([3.0, 9.0, 4.0, 3.0, 9.0])
    sizes = (np.full(3, 4.0), np.full(3, 2.0), np.full(3, 5.0))
    ends, read = scheduled(row, np.ones(5), walk, *sizes, 3)
    assert (ends[0], read[0]) == (ends[2], read[2]) == one_row([3.0, 9.0], 4, 2, 5, 3)
    assert (ends[1], read[1]) == one_row([4.0], 4, 2, 5, 3)


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
