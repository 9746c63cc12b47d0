"""Data-parallel MoE ranks in lock-step: waves, dummy batches, the slowest rank."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Make, config, halving_step, in_ms, shared_step, simulate

from simulator.fleet import CompiledFleet, PlainFleet
from simulator.routing.vllm_dp import VllmDP

both = pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])
HOW = {"replicas": 2, "model": shared_step()}


def steps_of(make: Make, *rows: tuple[float, int, int], **settings: object) -> dict[int, list]:
    """(start ms, end ms, tokens, dummy) of each step, by rank."""
    found = simulate(
        *rows, settings=config(lock_step_ranks=2, **settings), make=make, **HOW
    )["steps"]  # fmt: skip
    by_rank: dict[int, list] = {0: [], 1: []}
    tokens = [a + b for a, b in zip(found["prefill_tokens"], found["decode_tokens"], strict=True)]
    for i, rank in enumerate(found["replica"]):
        start, end = in_ms([found["start_s"][i], found["end_s"][i]])
        by_rank[rank].append((start, end, tokens[i], found["dummy"][i]))
    return by_rank


@both
def test_an_idle_rank_runs_dummies_until_all_agree_to_stop(make: Make) -> None:
    # a step: 1 ms of host, 5 + 2 x (most tokens of a rank) + (tokens of both), gap 1 ms if
    # anything was sampled; the wave began with step 1, so the ranks agree after step 4
    ranks = steps_of(make, (0.0, 4, 2), dp_sync_interval=4)
    first, idle = (5 + 8 + 5 + 1), (5 + 2 + 2 + 1)
    assert ranks[0] == [
        (0, first, 4, False),
        (first + 1, first + 1 + idle, 1, False),
        (first + 2 + idle, first + 2 + 2 * idle, 0, True),
        (first + 2 + 2 * idle, first + 2 + 3 * idle, 0, True),
    ]
    assert [step[:2] for step in ranks[1]] == [step[:2] for step in ranks[0]]
    assert [step[2:] for step in ranks[1]] == [(0, True)] * 4


@both
def test_a_request_in_the_tail_of_a_wave_waits_for_the_dummy_batch(make: Make) -> None:
    ranks = steps_of(make, (0.0, 4, 2), (35.0, 4, 2), dp_sync_interval=16)
    assert ranks[1][2] == (31, 41, 0, True)
    assert ranks[1][3] == (41, 60, 4, False)
    assert len(ranks[0]) == len(ranks[1]) == 16


@both
def test_after_a_wave_the_next_one_starts_with_an_arrival(make: Make) -> None:
    ranks = steps_of(make, (0.0, 4, 2), (1000.0, 4, 2), dp_sync_interval=16)
    assert len(ranks[0]) == 32
    assert ranks[0][15][1] < ranks[1][16][0] == 1000


@both
def test_a_wave_whose_only_request_ends_in_step_1_is_one_step(make: Make) -> None:
    assert len(steps_of(make, (0.0, 4, 1))[1]) == 1


@both
@pytest.mark.parametrize("output", [1, 2, 30])
def test_asynchronous_ranks_stop_at_a_multiple_of_the_interval(make: Make, output: int) -> None:
    ranks = steps_of(make, (0.0, 4, output), dp_sync_interval=8, async_scheduling=True)
    assert len(ranks[0]) == len(ranks[1])
    assert len(ranks[0]) % 8 == 0
    assert sum(not dummy for *_, dummy in ranks[0]) == output


@both
@pytest.mark.parametrize(
    ("prompts", "forward_ms"),
    [
        # 5 + 2 x 8 of the layers and 16 of the exchange, of which the halves hide all but a fourth
        ((8, 8), max(21, 16) + 16 / 4),
        ((8, 3), 5 + 16 + 11),  # the rank with 3 has too few
        ((16, 8), 5 + 32 + 24),  # half of 16 is all the other has: its second half is empty
        ((16, 9), max(5 + 32, 25) + 25 / 4),
    ],
)
def test_halves_hide_the_exchange_if_every_rank_has_enough(
    make: Make, prompts: tuple[int, int], forward_ms: float
) -> None:
    found = simulate(
        *((0.0, prompt, 1) for prompt in prompts), make=make, replicas=2, model=halving_step(),
        settings=config(
            lock_step_ranks=2, dbo_decode_token_threshold=2, dbo_prefill_token_threshold=8
        ),
    )  # fmt: skip
    assert in_ms(found["steps"]["forward_s"]) == [forward_ms] * 2


@pytest.mark.parametrize(("by_queue", "chosen"), [(False, [0, 0, 0]), (True, [1, 0, 1])])
def test_the_front_end_counted_a_waiting_request_four_times_in_0_19(
    by_queue: bool, chosen: list[int]
) -> None:
    """Rank 0 has two waiting, rank 1 four running; every choice adds one that waits."""
    ranks = [SimpleNamespace(unfinished=0) for _ in range(2)]
    router = VllmDP(ranks, by_queue=by_queue)
    router.publish([(2, 0, 0.1), (0, 4, 0.1)])
    # 0.32: 2 and 4, 3 and 4, 4 and 4; 0.19: 8 and 4, 8 and 8, 12 and 8; the scan begins at rank 0
    assert [router.choose() for _ in range(3)] == chosen


arrivals = st.lists(
    st.tuples(st.integers(0, 400), st.integers(1, 40), st.integers(1, 30)), min_size=1, max_size=12
)


@settings(deadline=None, max_examples=60)
@given(arrivals, st.integers(2, 4), st.sampled_from([1, 4, 16]), st.booleans())
def test_nothing_is_lost_and_ranks_step_together(
    rows: list[tuple[int, int, int]], ranks: int, interval: int, asynchronous: bool
) -> None:
    rows = sorted(rows)
    found = simulate(
        *((float(ms), prompt, output) for ms, prompt, output in rows), make=CompiledFleet,
        replicas=ranks, model=shared_step(),
        settings=config(
            lock_step_ranks=ranks, dp_sync_interval=interval, async_scheduling=asynchronous
        ),
    )  # fmt: skip
    requests, steps = found["requests"], found["steps"]
    assert requests["status"] == ["finished"] * len(rows)
    assert requests["output_tokens"] == [output for *_, output in rows]
    assert sum(steps["prefill_tokens"]) == sum(prompt for _, prompt, _ in rows)
    assert sum(steps["decode_tokens"]) == sum(output - 1 for *_, output in rows)
    emitted = found["step_requests"]["emitted_tokens"]
    assert sum(emitted) == sum(output for *_, output in rows)
    by_rank: list[list[tuple[float, float]]] = [[] for _ in range(ranks)]
    tokens = [a + b for a, b in zip(steps["prefill_tokens"], steps["decode_tokens"], strict=True)]
    for rank, start, end, count, dummy in zip(
        steps["replica"], steps["start_s"], steps["end_s"], tokens, steps["dummy"], strict=True
    ):
        by_rank[rank].append((start, end))
        assert dummy == (count == 0)
    assert all(times == by_rank[0] for times in by_rank)
