"""Data-parallel MoE ranks in lock-step: waves, dummy batches, the slowest rank."""

from __future__ import annotations

import pytest
from worlds import Make, config, halving_step, in_ms, shared_step, simulate

from simulator.fleet import CompiledFleet, PlainFleet

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
