"""The event loop on worlds small enough to compute by hand; both kinds of fleet."""

from __future__ import annotations

import pytest
from worlds import MS, Make, config, in_ms, linear_step, simulate

from simulator.fleet import CompiledFleet, PlainFleet

both = pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])


@both
def test_three_requests_by_hand(make: Make) -> None:
    """r0 (4+2) alone; r1 (12+1) and r2 (8+1) arrive during its first step.

    budget 16:  0 ms r0 prefills 4      -> 14 ms, r0's first token
               16 ms r0 1, r1 12, r2 3  -> 42 ms, r0 and r1 done
               44 ms r2 5               -> 59 ms, r2 done
    """
    tables = simulate((0, 4, 2), (1, 12, 1), (2, 8, 1), settings=config(), make=make)
    requests, steps = tables["requests"], tables["steps"]
    assert in_ms(requests["first_token_s"]) == [14, 42, 59]
    assert in_ms(requests["finished_s"]) == [42, 42, 59]
    assert in_ms(requests["queued_s"]) == [0, 16, 16]
    assert steps["prefill_tokens"] == [4, 15, 5]
    assert steps["decode_tokens"] == [0, 1, 0]
    assert in_ms(steps["start_s"]) == [0, 16, 44]


@both
def test_asynchronous_request_runs_two_steps_later(make: Make) -> None:
    """Depth 2: r1 arrives during step 0, step 1 is already scheduled, so it runs in step 2."""
    tables = simulate((0, 4, 6), (3, 4, 1), settings=config(async_scheduling=True), make=make)
    rows, steps = tables["step_requests"], tables["steps"]
    first = min(s for s, n in zip(rows["step"], rows["request_id"], strict=True) if n == "r1")
    assert first == 2
    assert steps["start_s"][1] < steps["end_s"][0]


@both
def test_preempted_request_comes_back_and_finishes(make: Make) -> None:
    requests = simulate((0, 8, 12), (0, 8, 12), settings=config(num_gpu_blocks=8), make=make)[
        "requests"
    ]
    assert requests["output_tokens"] == [12, 12]
    assert requests["preemptions"] == [0, 1]


@both
def test_front_end_delays_the_way_to_the_queue(make: Make) -> None:
    model = linear_step(frontend_ps=3 * MS)
    requests = simulate((5, 4, 1), settings=config(), make=make, model=model)["requests"]
    assert in_ms(requests["queued_s"]) == [8]
    assert in_ms(requests["finished_s"]) == [22]


@both
def test_routers(make: Make) -> None:
    rows = [(0, 40, 30), (1, 4, 1), (100, 4, 1), (200, 4, 1)]
    turns = simulate(*rows, settings=config(), make=make, replicas=2)["requests"]
    assert turns["replica"] == [0, 1, 0, 1]
    loaded = simulate(*rows, settings=config(), make=make, replicas=2, router="least_loaded")[
        "requests"
    ]
    assert loaded["replica"] == [0, 1, 1, 1]


@both
def test_closed_loop_keeps_its_concurrency(make: Make) -> None:
    world = simulate(*[(0, 4, 3)] * 6, settings=config(), make=make, concurrency=2)
    requests = world["requests"]
    arrivals, ends = requests["arrival_s"], requests["finished_s"]
    for arrival in arrivals:
        alive = [a for a, e in zip(arrivals, ends, strict=True) if a <= arrival < e]
        assert len(alive) <= 2
    assert arrivals[2] == ends[0]


@pytest.mark.parametrize("router", ["round_robin", "least_loaded", "vllm_dp"])
@pytest.mark.parametrize("asynchronous", [False, True])
@both
def test_conservation_under_pressure(make: Make, asynchronous: bool, router: str) -> None:
    rows = [(i * 3, 3 + 7 * i % 40, 1 + 5 * i % 30) for i in range(60)]
    settings = config(num_gpu_blocks=30, async_scheduling=asynchronous, enable_prefix_caching=True)
    tables = simulate(*rows, settings=settings, replicas=2, router=router, make=make)
    assert set(tables["requests"]["status"]) == {"finished"}
    assert sum(tables["requests"]["preemptions"]) > 0
    emitted = sum(tables["step_requests"]["emitted_tokens"])
    assert emitted == sum(tables["requests"]["output_tokens"]) == sum(o for _, _, o in rows)
