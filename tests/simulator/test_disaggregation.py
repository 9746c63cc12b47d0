"""Prefill and decode clusters: worlds computed by hand, and what must hold in any."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pd_worlds import BLOCK_BYTES, consumer, producer, requests_of, run_pd
from worlds import MS, Make, in_ms, simulate

from simulator.deployment import SHIPPED, Engine
from simulator.disaggregation.connection import kv_layout
from simulator.fleet import CompiledFleet, PlainFleet
from simulator.model import load_model
from traces.errors import ConfigError

both = pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])
THREE = ((0, 8, 3), (0, 4, 2), (5, 12, 3))  # arrival ms, prompt, output

Rows = list[tuple[int, int, int]]
worlds = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=12
)
few = settings(max_examples=40, deadline=None, derandomize=True)


def log_of(requests: Any, *names: str) -> dict[str, list[float]]:
    columns = requests.to_pydict()
    return {name: in_ms(columns[f"{name}_s"]) for name in names}


@both
def test_pull_by_hand(make: Make) -> None:
    """Steps last 10 ms + 1 ms a token, 2 ms lie between; a block of 4 tokens moves in 1 ms.

    prefill   0 ms r0 8, r1 4 -> 22 ms;    24 ms r2 12 -> 46 ms
    links    22 ms r0 and r1 share: r1 (1 block) till 24 ms, r0 (2) till 25 ms
    decode   24 ms r1 1       -> 35 ms, its first token
             37 ms r0 1, r1 1 -> 49 ms, r1 done; r2 came at 46 ms
             51 ms r0 1       -> 62 ms; r2's blocks are reserved, its pull begins with the
                                 forward pass, at 52 ms, and ends at 55 ms
             64 ms r0 1, r2 1 -> 76 ms, r0 done
             78 ms r2 1 -> 89 ms,    91 ms r2 1 -> 102 ms, r2 done
    """
    tables = run_pd(requests_of(*THREE), make)[1]
    assert log_of(
        tables["requests"], "prefill_finished", "decode_queued", "transfer_start", "transfer_end",
        "decode_scheduled", "first_token", "finished",
    ) == {
        "prefill_finished": [22, 22, 46],
        "decode_queued": [22, 22, 51],
        "transfer_start": [22, 22, 52],
        "transfer_end": [25, 24, 55],
        "decode_scheduled": [37, 24, 64],
        "first_token": [49, 35, 76],
        "finished": [76, 49, 102],
    }  # fmt: skip
    steps = tables["steps"].to_pydict()
    assert steps["cluster"] == ["decode"] * 6 + ["prefill"] * 2
    assert in_ms(steps["start_s"]) == [24, 37, 51, 64, 78, 91, 0, 24]
    # of 99 blocks, r0 and r1 hold 2 and 1, then 2 and 2, then r0 and r2 3 and 3
    assert steps["free_blocks"][:3] == [99 - 2 - 1, 99 - 2 - 2, 99 - 3 - 3]
    assert tables["transfers"].to_pydict()["bytes"] == [
        2 * BLOCK_BYTES,
        BLOCK_BYTES,
        3 * BLOCK_BYTES,
    ]
    assert tables["transfers"].to_pydict()["source"] == ["prefill/0"] * 3


@both
def test_push_by_hand(make: Make) -> None:
    """The same requests; both sides have them at once, and KV goes when prefill is done.

    prefill   0 ms r0 8, r1 4 -> 22 ms;    24 ms r2 12 -> 46 ms
    links    22 ms r0, r1 as before;       46 ms r2 (3 blocks) till 49 ms
    decode   24 ms r1 1       -> 35 ms
             37 ms r0 1, r1 1 -> 49 ms, r1 done
             51 ms r0 1, r2 1 -> 63 ms,    65 ms both -> 77 ms, r0 done
             79 ms r2 1       -> 90 ms, r2 done
    """
    tables = run_pd(requests_of(*THREE), make, transfer="push")[1]
    assert log_of(
        tables["requests"], "decode_queued", "transfer_start", "transfer_end", "first_token",
        "finished",
    ) == {
        "decode_queued": [0, 0, 5],
        "transfer_start": [22, 22, 46],
        "transfer_end": [25, 24, 49],
        "first_token": [49, 35, 63],
        "finished": [77, 49, 90],
    }  # fmt: skip


@both
@pytest.mark.parametrize(
    ("contention", "ends"), [("fair", [25, 24]), ("fifo", [24, 25]), ("none", [24, 23])]
)
def test_two_transfers_on_one_link(make: Make, contention: str, ends: list[int]) -> None:
    """Two blocks and one, from 22 ms on: shared, one after the other, or each alone."""
    requests = run_pd(requests_of(*THREE[:2]), make, contention=contention)[1]["requests"]
    assert log_of(requests, "transfer_end")["transfer_end"] == ends


@both
@pytest.mark.parametrize("shared_by", ["all", "source", "destination", "pair"])
def test_who_shares_a_link(make: Make, shared_by: str) -> None:
    """Two prefill replicas finish two blocks each at the same time, for two decode replicas."""
    rows = [(0, 8, 2), (0, 8, 2)]
    requests = run_pd(requests_of(*rows), make, replicas=(2, 2), shared_by=shared_by)[1]["requests"]
    ends = [22, 22] if shared_by == "all" else [20, 20]
    assert log_of(requests, "transfer_end")["transfer_end"] == ends


@both
def test_setup_latency_and_proxy_add_up(make: Make) -> None:
    """18 ms prefill, 3 ms proxy, 1 ms set-up, 2 ms for the bytes, 0.5 ms latency, 11 ms decode."""
    requests = run_pd(
        requests_of((0, 8, 1)), make, proxy_ps=3 * MS, setup_us=1000.0, latency_us=500.0
    )[1]["requests"]
    times = log_of(requests, "decode_queued", "transfer_start", "transfer_end", "first_token")
    assert list(times.values()) == [[21], [21], [24.5], [35.5]]


@both
def test_layers_go_while_prefill_computes(make: Make) -> None:
    """Of 4 layers of 2 blocks, 3 are over when prefill ends; the last takes half a millisecond."""
    options: dict[str, Any] = {"transfer": "push", "layerwise": True}
    requests = run_pd(requests_of((0, 8, 1)), make, **options)[1]["requests"]
    times = log_of(requests, "prefill_finished", "transfer_start", "transfer_end")
    assert list(times.values()) == [[18], [0], [18.5]]


@both
def test_one_token_needs_no_decode(make: Make) -> None:
    rows = [(0, 8, 1), (0, 8, 2)]
    tables = run_pd(requests_of(*rows), make, skip_decode=True)[1]
    requests = tables["requests"].to_pydict()
    assert requests["finished_s"][0] == requests["first_token_s"][0] == 0.026
    assert requests["decode_replica"] == [None, 0]
    assert len(tables["transfers"]) == 1
    assert set(requests["status"]) == {"finished"}


@both
@pytest.mark.parametrize("renewal", [True, False])
def test_a_lease_that_ends_in_the_queue_is_counted(make: Make, renewal: bool) -> None:
    """Of four requests two are done with prefill at 26 ms and two at 54 ms.

    The first two fill decode's 6 blocks beyond 104 ms, and leases end after 50 ms.
    """
    rows = [(0, 8, 12)] * 4
    simulation, tables = run_pd(
        requests_of(*rows), make, decode=consumer(num_gpu_blocks=7), lease_s=0.05,
        lease_renewal=renewal,
    )  # fmt: skip
    lost = sum(simulation.handovers.lost)
    assert lost == (0 if renewal else 2)
    assert tables["requests"].to_pydict()["status"].count("failed") == lost


@both
def test_a_full_decode_side_stops_prefill(make: Make) -> None:
    """Decode holds two requests at most, prefill four: the others wait before prefill.

    Once decode is full, finished prefills fill prefill's memory, and no step of it runs
    until a transfer has freed blocks.
    """
    rows = [(i, 16, 30) for i in range(16)]
    tables = run_pd(
        requests_of(*rows), make, prefill=producer(num_gpu_blocks=17),
        decode=consumer(num_gpu_blocks=25),
    )[1]  # fmt: skip
    requests, steps = tables["requests"].to_pydict(), tables["steps"].to_pydict()
    assert set(requests["status"]) == {"finished"}
    assert requests["output_tokens"] == [30] * 16
    prefill = [
        (start, free)
        for cluster, start, free in zip(
            steps["cluster"], steps["start_s"], steps["free_blocks"], strict=True
        )
        if cluster == "prefill"
    ]
    assert min(free for _, free in prefill) == 0
    taken = sorted(requests["transfer_end_s"])
    # a prefill needs 4 of the 16 blocks: the n-th is scheduled after the (n - 4)-th was taken
    for n, at in enumerate(sorted(requests["scheduled_s"])[4:]):
        assert at >= taken[n]
    assert max(requests["scheduled_s"]) > min(requests["finished_s"])


@both
def test_pushing_may_deadlock(make: Make) -> None:
    """By priority decode reserves for r2 and r3, which wait behind r0 and r1 at prefill."""
    requests = requests_of(*[(0, 16, 8)] * 4, priority=[1, 1, 0, 0])
    sides = {
        "prefill": producer(num_gpu_blocks=9),
        "decode": consumer(num_gpu_blocks=10, scheduling_policy="priority"),
    }
    assert len(run_pd(requests, make, **sides)[1]["transfers"]) == 4
    with pytest.raises(ConfigError, match="links: 4 requests wait for ever"):
        run_pd(requests, make, **sides, transfer="push")


@both
def test_decode_finds_what_it_has_in_its_own_cache(make: Make) -> None:
    """The second request begins with the two blocks of the first: one block is moved."""
    hashes = [[1, 2], [1, 2, 3]]
    requests = requests_of((0, 8, 2), (200, 12, 2), block_hashes=hashes)
    tables = run_pd(
        requests, make, prefill=producer(enable_prefix_caching=True),
        decode=consumer(enable_prefix_caching=True), hash_block_tokens=4,
    )[1]  # fmt: skip
    assert tables["transfers"].to_pydict()["bytes"] == [2 * BLOCK_BYTES, BLOCK_BYTES]
    assert tables["requests"].to_pydict()["cached_tokens"] == [0, 8]


ROOMY: dict[str, Any] = {
    "num_gpu_blocks": 1000, "max_num_seqs": 64, "max_num_batched_tokens": 64,
}  # fmt: skip


@few
@given(worlds)
def test_over_an_infinite_link_decode_is_an_engine_of_its_own(rows: Rows) -> None:
    """Its steps are those of a co-located one that gets each request when prefill is done.

    Blocks are reserved while prefill computes, so that none waits for a step more.
    """
    rows.sort()
    tables = run_pd(
        requests_of(*rows), CompiledFleet, prefill=producer(**ROOMY), decode=consumer(**ROOMY),
        transfer="push", bandwidth_gb_s=math.inf,
    )[1]  # fmt: skip
    done = in_ms(tables["requests"].to_pydict()["prefill_finished_s"])
    alone = sorted((at, 1, output) for at, (_, _, output) in zip(done, rows, strict=True))
    steps = simulate(*alone, settings=consumer(**ROOMY), make=CompiledFleet)["steps"]
    ours = tables["steps"].to_pydict()
    mine = [i for i, cluster in enumerate(ours["cluster"]) if cluster == "decode"]
    for name in ("start_s", "end_s", "prefill_tokens", "decode_tokens", "running"):
        assert [ours[name][i] for i in mine] == steps[name], name


@few
@given(worlds)
def test_more_prefill_replicas_leave_the_prefill_time(rows: Rows) -> None:
    rows.sort()
    waits = []
    for replicas in (1, len(rows)):
        requests = run_pd(
            requests_of(*rows), CompiledFleet, prefill=producer(**ROOMY),
            decode=consumer(**ROOMY), replicas=(replicas, 1),
        )[1]["requests"]  # fmt: skip
        times = log_of(requests, "arrival", "prefill_finished")
        waits.append(np.subtract(times["prefill_finished"], times["arrival"]))
    alone = [10 + prompt for _, prompt, _ in rows]
    np.testing.assert_allclose(waits[1], alone, atol=1e-5)
    assert (waits[0] >= waits[1] - 1e-5).all()


@few
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([0.01, 0.1, 3.0]))
def test_a_slower_link_adds_bytes_over_bandwidth(prompts: list[int], gb_s: float) -> None:
    rows = [(10_000 * i, prompt, 3) for i, prompt in enumerate(prompts)]
    first: dict[float, Any] = {}
    for bandwidth in (math.inf, gb_s):
        simulation, tables = run_pd(requests_of(*rows), CompiledFleet, bandwidth_gb_s=bandwidth)
        first[bandwidth] = simulation.decode.demand.records["first_token_ps"]
    sizes = tables["transfers"]["bytes"].to_numpy()
    added = first[gb_s] - first[math.inf]
    np.testing.assert_array_equal(added, np.rint(sizes * (1000 / gb_s)).astype(np.int64))


@pytest.mark.parametrize(
    ("prefill", "decode", "bytes_a_token", "reads"),
    [
        ({}, {}, 2 * 8 * 128 * 2, 1),
        ({"dtype": "float32"}, {"dtype": "float32"}, 2 * 8 * 128 * 4, 1),
        ({"kv_cache_dtype": "fp8"}, {"kv_cache_dtype": "fp8"}, 2 * 8 * 128, 1),
        ({"tensor_parallel_size": 4}, {"tensor_parallel_size": 2}, 2 * 8 * 128 * 2, 2),
        ({}, {"tensor_parallel_size": 16}, 2 * 16 * 128 * 2, 1),  # two ranks pull each head
    ],
)
def test_what_is_handed_over(
    prefill: dict[str, Any], decode: dict[str, Any], bytes_a_token: int, reads: int
) -> None:
    model = load_model(SHIPPED / "traces" / "models" / "llama-3.1-8b.json")
    layout = kv_layout(model, Engine(**prefill), Engine(**decode, block_size=32))
    assert layout.block_bytes == bytes_a_token * 32 * 32  # tokens of a block, layers
    assert layout.reads == reads
