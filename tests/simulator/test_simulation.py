"""The event loop on worlds small enough to compute by hand."""

from __future__ import annotations

import pytest
from worlds import MS, config, requests_at, simulate

from simulator.arrivals import ClosedLoop


def times_ms(values: list[int]) -> list[float]:
    return [v / MS for v in values]


def test_three_requests_by_hand() -> None:
    """r0 (4+2) alone; r1 (12+1) and r2 (8+1) arrive during its first step.

    budget 16:  0 ms r0 prefills 4      -> 14 ms, r0's first token
               16 ms r0 1, r1 12, r2 3  -> 42 ms, r0 and r1 done
               44 ms r2 5               -> 59 ms, r2 done
    """
    requests = requests_at((0, 4, 2), (1, 12, 1), (2, 8, 1))
    recorder = simulate(requests, config())
    assert times_ms([r.first_token_ps for r in requests]) == [14, 42, 59]
    assert times_ms([r.finished_ps for r in requests]) == [42, 42, 59]
    assert times_ms([r.queued_ps for r in requests]) == [0, 16, 16]
    steps = recorder.tables()["steps"].to_pydict()
    assert steps["prefill_tokens"] == [4, 15, 5]
    assert steps["decode_tokens"] == [0, 1, 0]
    assert steps["start_s"] == [0.0, 0.016, 0.044]


def test_asynchronous_request_runs_two_steps_later() -> None:
    """Depth 2: r1 arrives during step 0, step 1 is already scheduled, so it runs in step 2."""
    requests = requests_at((0, 4, 6), (3, 4, 1))
    recorder = simulate(requests, config(async_scheduling=True))
    rows = recorder.tables()["step_requests"].to_pydict()
    first = min(s for s, n in zip(rows["step"], rows["request_id"], strict=True) if n == "r1")
    assert first == 2
    # The device never waits for the host between steps in flight.
    steps = recorder.tables()["steps"].to_pydict()
    assert steps["start_s"][1] < steps["end_s"][0]


def test_preempted_request_comes_back_and_finishes() -> None:
    requests = requests_at((0, 8, 12), (0, 8, 12))
    simulate(requests, config(num_gpu_blocks=8))
    assert [r.output for r in requests] == [12, 12]
    assert [r.preemptions for r in requests] == [0, 1]


def test_round_robin_and_least_loaded() -> None:
    rows = [(0, 40, 30), (1, 4, 1), (2, 4, 1), (200, 4, 1)]
    requests = requests_at(*rows)
    simulate(requests, config(), replicas=2)
    assert [r.replica for r in requests] == [0, 1, 0, 1]
    requests = requests_at(*rows)
    simulate(requests, config(), replicas=2, router="least_loaded")
    assert [r.replica for r in requests] == [0, 1, 0, 1]
    requests = requests_at((0, 40, 30), (1, 4, 1), (100, 4, 1), (200, 4, 1))
    simulate(requests, config(), replicas=2, router="least_loaded")
    assert [r.replica for r in requests] == [0, 1, 1, 1]


def test_closed_loop_keeps_its_concurrency() -> None:
    requests = requests_at(*[(0, 4, 3)] * 6)
    simulate(requests, config(), arrivals=ClosedLoop(requests, 2))
    for r in requests:
        alive = [o for o in requests if o.arrival_ps <= r.arrival_ps < o.finished_ps]
        assert len(alive) <= 2
    assert requests[2].arrival_ps == requests[0].finished_ps


@pytest.mark.parametrize("asynchronous", [False, True])
def test_conservation_under_pressure(asynchronous: bool) -> None:
    rows = [(i * 3, 3 + 7 * i % 40, 1 + 5 * i % 30) for i in range(60)]
    requests = requests_at(*rows)
    settings = config(
        num_gpu_blocks=30, async_scheduling=asynchronous, enable_prefix_caching=True
    )
    recorder = simulate(requests, settings, replicas=2)
    assert [r.output for r in requests] == [r.max_tokens for r in requests]
    emitted = recorder.tables()["step_requests"].column("emitted_tokens").to_pylist()
    assert sum(emitted) == sum(r.max_tokens for r in requests)
