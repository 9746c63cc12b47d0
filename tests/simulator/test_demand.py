"""Requests made ready to simulate: what is refused, and which blocks are shared."""

from __future__ import annotations

import pyarrow as pa
import pytest
from worlds import config

from simulator.demand import Demand
from traces.errors import ConfigError


def demand(
    hashes: list[list[int] | None], hash_tokens: int = 4, prompt: int = 32, **settings: object
) -> Demand:
    columns = {
        "request_id": [f"r{i}" for i in range(len(hashes))],
        "arrival_s": [0.0] * len(hashes),
        "prompt_tokens": [prompt] * len(hashes),
        "output_tokens": [8] * len(hashes),
        "block_hashes": pa.array(hashes, pa.list_(pa.int64())),
    }
    return Demand(pa.table(columns), config(**settings), hash_tokens)


def shared(world: Demand) -> list[list[int]]:
    return [list(world.prefixes.of(i)) for i in range(len(world))]


def test_leading_blocks_that_another_request_has_are_shared() -> None:
    world = demand([[7, 8, 9, 1], [7, 8, 5], None, [5, 6], [7, 8, 9, 2]])
    assert shared(world) == [[0, 1, 2], [0, 1, 3], [], [3], [0, 1, 2]]
    assert world.records["shared"].tolist() == [3, 3, 0, 1, 3]


def test_a_hash_block_of_several_engine_blocks_stands_for_each() -> None:
    assert shared(demand([[7, 1], [7, 2]], hash_tokens=8)) == [[0, 1], [0, 1]]


def test_several_hash_blocks_in_an_engine_block_stand_for_it_together() -> None:
    world = demand([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 9, 10], [1, 2]], hash_tokens=2)
    assert shared(world) == [[0, 1], [0, 1], [0]]


def test_no_more_blocks_than_the_request_fills() -> None:
    assert shared(demand([[1, 2, 3], [1, 2, 3]], prompt=1)) == [[0, 1], [0, 1]]


def test_the_reference_sees_the_same_prefixes() -> None:
    world = demand([[7, 8, 1], [7, 8, 2]])
    a, b = world.make(0), world.make(1)
    assert a.hashes[:2] == b.hashes[:2]
    assert a.shared == b.shared == 2
    assert len(a.hashes) == 10
    assert not {*a.hashes[2:]} & {*b.hashes}


def test_what_can_never_run_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'r0' \(row 0\): 400 prompt \+ 8 output tokens exceed"):
        demand([[]], prompt=400)
    with pytest.raises(ConfigError, match=r"'r0' .* needs 10 KV blocks of 4 tokens, .* has 8"):
        demand([[]], num_gpu_blocks=9)
    with pytest.raises(ConfigError, match="3 and the workload's hash blocks of 4 tokens"):
        demand([[1], [1]], block_size=3)
