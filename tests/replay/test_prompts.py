"""Prompts: exact lengths, shared where the workload shares, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import blake2b
from itertools import combinations, takewhile

import pyarrow as pa

from replay.prompts import PromptMaker, draw_ids

BLOCK = 4
SEED, VOCAB = 7, 100

STABLE = """
import pyarrow as pa
from replay.prompts import PromptMaker
table = pa.table({"request_id": ["a"], "prompt_tokens": [11], "block_hashes": [[1, -2]]})
print(PromptMaker(table, 4, 7, 100).prompt(0))
"""


def maker(*rows: tuple[str, int, list[int]], skip: int = 0) -> PromptMaker:
    ids, lengths, hashes = zip(*rows, strict=True)
    table = pa.table(
        {
            "request_id": pa.array(ids),
            "prompt_tokens": pa.array(lengths, pa.int64()),
            "block_hashes": pa.array(hashes, pa.list_(pa.int64())),
        }
    )
    return PromptMaker(table.slice(skip), BLOCK, SEED, VOCAB)


def shared_blocks(one: list[int], other: list[int]) -> int:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len(list(same)) // BLOCK


def test_an_id_comes_from_blake2b_alone() -> None:
    word = int.from_bytes(blake2b(b"7/x/0").digest()[8:12], "little")
    ids = draw_ids(SEED, "x", 40, VOCAB)
    assert ids[2] == 16 + word % (VOCAB - 16)
    assert ids.min() >= 16
    assert ids.max() < VOCAB
    assert (draw_ids(SEED, "x", 3, VOCAB) == ids[:3]).all()
    assert (draw_ids(SEED + 1, "x", 40, VOCAB) != ids).any()


def test_prompts_share_exactly_the_blocks_whose_hashes_they_share() -> None:
    rows = [
        ("a", 17, [1, 2, 3, 4]),
        ("b", 12, [1, 2, 3]),
        ("c", 15, [1, 2, 9]),
        ("d", 3, []),
        ("e", 5, [8, 3]),  # the second block is output
        ("f", 30, [1]),
        ("g", 12, [7, 2, 3]),
    ]
    make = maker(*rows)
    prompts = {name: make.prompt(i) for i, (name, _, _) in enumerate(rows)}
    for name, length, _ in rows:
        assert len(prompts[name]) == length
        assert all(16 <= i < VOCAB for i in prompts[name])
    for one, other in combinations(rows, 2):
        pairs = zip(one[2][: one[1] // BLOCK], other[2][: other[1] // BLOCK], strict=False)
        wanted = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        assert shared_blocks(prompts[one[0]], prompts[other[0]]) == wanted, (one, other)


def test_a_sliced_workload_gives_the_same_prompts() -> None:
    rows = [("a", 9, [1, 2]), ("b", 13, [1, 5, 6, 9]), ("c", 17, [1, 5, 6, 9])]
    whole, sliced = maker(*rows), maker(*rows, skip=1)
    assert whole.prompt(2) == sliced.prompt(1)
    assert [whole.wants_answer(i) for i in (1, 2)] == [sliced.wants_answer(i) for i in (0, 1)]


def test_without_hashes_nothing_is_shared() -> None:
    table = pa.table({"request_id": ["a", "b"], "prompt_tokens": [20, 20]})
    make = PromptMaker(table, None, SEED, VOCAB)
    one, other = make.prompt(0), make.prompt(1)
    assert len(one) == len(other) == 20
    assert shared_blocks(one, other) == 0
    assert make.alone("a", 20) != one


def test_what_was_generated_is_asked_for_and_used() -> None:
    make = maker(("turn 0", 6, [1, 2, 3]), ("turn 1", 15, [1, 2, 3]), ("other", 8, [1, 5]))
    assert [make.wants_answer(i) for i in range(3)] == [True, False, False]
    first = make.prompt(0)
    answer = list(range(50, 57))
    make.answered(0, first, answer)
    second = make.prompt(1)
    assert second[:4] == first[:4]
    assert second[4:12] == (first + answer)[4:12]
    assert make.unanswered == 0


def test_an_answer_that_comes_too_late_changes_no_block_that_was_sent() -> None:
    make = maker(("turn 0", 6, [1, 2, 3]), ("turn 1", 13, [1, 2, 3]), ("turn 2", 14, [1, 2, 3]))
    early = make.prompt(1)
    assert make.unanswered == 2
    make.answered(0, make.prompt(0), list(range(50, 57)))
    assert make.prompt(2)[:12] == early[:12]
    assert make.unanswered == 2


def test_the_same_ids_in_every_process() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", STABLE], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }  # fmt: skip
    assert printed == {f"{maker(('a', 11, [1, -2])).prompt(0)}\n"}
