"""Two fleets in one simulation: each is advanced to its next outside event.

A toy of disaggregation: the prefill stage makes the first token, its end is a handover, and
after a transfer the decode stage makes the rest of the request. It shows that the fleets'
interface suffices; memory pressure does not travel back here.
"""

from __future__ import annotations

import heapq

import numpy as np
import pyarrow as pa
import pytest
from worlds import MS, Make, config, linear_step

from simulator.clock import NEVER
from simulator.demand import OUTCOMES, Demand
from simulator.fleet import CompiledFleet, PlainFleet

TRANSFER = 5 * MS
SETTINGS = config(num_gpu_blocks=400, enable_prefix_caching=True)


def demand(rows: list[tuple[int, int, int]]) -> Demand:
    """A stage's requests from (arrival ms, prompt, output)."""
    at, prompts, outputs = zip(*rows, strict=True)
    ids = [f"r{i}" for i in range(len(rows))]
    columns = {"arrival_s": np.array(at) / 1000, "prompt_tokens": prompts, "output_tokens": outputs}
    return Demand(pa.table({"request_id": ids, **columns}), SETTINGS)


def two_stages(rows: list[tuple[int, int, int]], make: Make) -> tuple[Demand, Demand]:
    """Run (arrival ms, prompt, output) through two prefill and two decode replicas."""
    first = demand([(at, prompt, 1) for at, prompt, _ in rows])
    # the decode stage has all of the prompt but its last token
    second = demand([(at, 1, output - 1) for at, _, output in rows])
    prefill, decode = make(first, 2, linear_step()), make(second, 2, linear_step())
    arrivals = [(at * MS, i) for i, (at, _, _) in enumerate(rows)]
    moving: list[tuple[int, int]] = []  # (end of the transfer, request)
    sent = 0
    while True:
        arrival = arrivals[sent][0] if sent < len(arrivals) else NEVER
        arrived = moving[0][0] if moving else NEVER
        if prefill.next_ps < min(arrival, arrived):
            for request, _, at in prefill.run(min(arrival, arrived), in_order=True):
                heapq.heappush(moving, (at + TRANSFER, request))
        elif arrival <= arrived and arrival < NEVER:
            prefill.arrive(sent, sent % 2, arrival)
            sent += 1
        else:
            while decode.next_ps < arrived:
                decode.run(arrived)
            if arrived == NEVER:
                break
            decode.arrive(moving[0][1], moving[0][1] % 2, arrived)
            heapq.heappop(moving)
    for fleet in (prefill, decode):
        fleet.close()
        fleet.check()
    return first, second


@pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])
def test_one_request_by_hand(make: Make) -> None:
    """Prefill of 4 tokens 0-14 ms, transfer to 19 ms, two decode steps of 11 ms, 2 ms apart."""
    first, second = two_stages([(0, 4, 3)], make)
    assert first.records["finished_ps"] == 14 * MS
    assert second.records["queued_ps"] == 19 * MS
    assert second.records["first_token_ps"] == 30 * MS
    assert second.records["finished_ps"] == 43 * MS


def test_both_kinds_of_fleet_agree() -> None:
    rng = np.random.default_rng(0)
    at = np.cumsum(rng.integers(0, 30, 200))
    rows = list(zip(at.tolist(), rng.integers(1, 60, 200).tolist(),
                    rng.integers(2, 30, 200).tolist(), strict=True))  # fmt: skip
    plain, compiled = two_stages(rows, PlainFleet), two_stages(rows, CompiledFleet)
    for ours, theirs in zip(compiled, plain, strict=True):
        for name in OUTCOMES:
            np.testing.assert_array_equal(ours.records[name], theirs.records[name], err_msg=name)
    first, second = compiled
    np.testing.assert_array_equal(second.records["due_ps"], first.records["finished_ps"] + TRANSFER)
