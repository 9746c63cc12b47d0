"""Validation of a table: what is found, how it is told, what it lets pass."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from traces.check import table_faults
from traces.schema import TABLES

REQUESTS: dict[str, Any] = {
    "request_id": ["a", "b", "c"], "arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [3, 4, 5],
    "output_tokens": [1, 0, 2],
}  # fmt: skip
STEPS: dict[str, Any] = {
    "cluster": ["x", "y", "x"], "replica": [0, 0, 0], "step": [0, 0, 1],
    "start_s": [0.0, 5.0, 1.0], "end_s": [2.0, 6.0, 2.0], "prefill_tokens": [0, 0, 0],
    "decode_tokens": [1, 1, 1], "running": [1, 1, 1], "waiting": [0, 0, 0],
}  # fmt: skip
ROUTING: dict[str, Any] = {
    "request_id": ["a"], "time_s": [0.0], "cluster": ["x"], "replica": [0],
}  # fmt: skip
FLOATS = pa.list_(pa.float64())


def found(table: str, rows: dict[str, Any], **changed: Any) -> list[str]:
    return table_faults(TABLES[table], pa.table({**rows, **changed}), "f")


@pytest.mark.parametrize(
    ("table", "rows"), [("requests", REQUESTS), ("steps", STEPS), ("routing", ROUTING)]
)
def test_sound_tables(table: str, rows: dict[str, Any]) -> None:
    assert found(table, rows) == []


def test_what_may_be() -> None:
    assert not found(
        "requests", REQUESTS,
        priority=[-5, None, 2],  # smaller runs first, also below zero
        block_hashes=pa.array([[-(1 << 63)], None, []], pa.list_(pa.int64())),
        queued_s=[None, 1.0, 2.0], scheduled_s=[0.5, None, 2.0],
        token_times_s=pa.array([[1.0, 1.0], [], None], FLOATS),
    )  # fmt: skip
    narrow = pa.table(REQUESTS).set_column(2, "prompt_tokens", pa.array([3, 4, 5], pa.int16()))
    assert table_faults(TABLES["requests"], narrow, "f") == []
    assert table_faults(TABLES["steps"], pa.table(STEPS).slice(0, 0), "f") == []


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({"arrival_s": [0.0, float("nan"), 2.0]},
         ["f: row 1, column 'arrival_s' is nan: must be a number >= 0"]),
        ({"arrival_s": [0.0, 1.0, float("inf")]},
         ["f: row 2, column 'arrival_s' is inf: must be a number >= 0"]),
        ({"arrival_s": [-0.5, 1.0, 2.0]},
         ["f: row 0, column 'arrival_s' is -0.5: must be a number >= 0"]),
        ({"arrival_s": [0.0, 2.0, 1.0]}, ["f: row 2, column 'arrival_s' goes backwards"]),
        ({"arrival_s": [0.0, None, 1.0]}, ["f: row 1, column 'arrival_s' is empty"]),
        ({"arrival_s": ["0", "1", "x"]}, ["f: column 'arrival_s': expected float, got string"]),
        ({"prompt_tokens": [0, 1, 2]},
         ["f: row 0, column 'prompt_tokens' is 0: must be a number >= 1"]),
        ({"output_tokens": [1.5, 1.0, 1.0]},
         ["f: column 'output_tokens': expected int, got double"]),
        ({"request_id": ["a", "b", "a"]}, ["f: request_id='a' appears 2 times"]),
        ({"status": ["finished", "finishd", None]},
         ["f: row 1, column 'status' is unknown; did you mean 'finished'? (known: aborted, failed, "
          "finished, rejected, unfinished)"]),
        ({"queued_s": [0.0, 0.5, 2.0]}, ["f: row 1, column 'queued_s' is before 'arrival_s'"]),
        ({"scheduled_s": [1.0, None, 3.0], "first_token_s": [0.5, 1.0, 4.0]},
         ["f: row 0, column 'first_token_s' is before 'scheduled_s'"]),
        ({"token_times_s": pa.array([[1.0, 0.5], [2.0], [1.0]], FLOATS)},
         ["f: row 0, column 'token_times_s' goes backwards"]),
        ({"token_times_s": pa.array([[1.0], [float("nan")], [-1.0]], FLOATS)},
         ["f: row 1, column 'token_times_s' holds what is not a number >= 0",
          "f: row 2, column 'token_times_s' holds what is not a number >= 0"]),
    ],
)  # fmt: skip
def test_faults_of_requests(changed: dict[str, Any], want: list[str]) -> None:
    assert found("requests", REQUESTS, **changed) == want


@pytest.mark.parametrize(
    ("changed", "want"),
    [
        ({"end_s": [2.0, 4.0, 2.0]}, ["f: row 1, column 'end_s' is before 'start_s'"]),
        ({"start_s": [0.0, 5.0, 1.0], "end_s": [2.0, 6.0, 1.5]},
         ["f: row 2, column 'end_s' goes backwards"]),
        ({"step": [1, 0, 0]}, ["f: row 2, column 'step' goes backwards"]),
        ({"step": [0, 0, 0]}, ["f: cluster='x' replica=0 step=0 appears 2 times"]),
        ({"running": [-1, 1, 1]}, ["f: row 0, column 'running' is -1: must be a number >= 0"]),
    ],
)  # fmt: skip
def test_faults_of_steps(changed: dict[str, Any], want: list[str]) -> None:
    assert found("steps", STEPS, **changed) == want


def test_two_replicas_may_interleave() -> None:
    # y runs far ahead of x, each in order
    assert found("steps", STEPS) == []


def test_many_faults_are_counted() -> None:
    n = 10
    rows = {
        "request_id": [str(i) for i in range(n)], "arrival_s": [-1.0] * n,
        "prompt_tokens": [1] * n, "output_tokens": [None, *[1] * (n - 1)],
    }  # fmt: skip
    assert found("requests", rows) == [
        *(f"f: row {i}, column 'arrival_s' is -1.0: must be a number >= 0" for i in range(3)),
        "f: column 'arrival_s': 7 more rows like these",
        "f: row 0, column 'output_tokens' is empty",
    ]
