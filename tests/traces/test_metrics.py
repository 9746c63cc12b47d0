"""The metric formulas, on values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from traces.bundle import Bundle, Manifest
from traces.metrics import METRICS, inter_token_latencies, request_metrics

LISTS = pa.list_(pa.float64())
#            arrival  sent   scheduled  first   finished  tokens
ROWS = {
    "a": (0.0, 0.125, 0.25, 0.5, 2.5, 5),
    "one token": (1.0, 1.0, 1.5, 2.0, 2.0, 1),
    "two tokens": (2.0, 2.25, 2.25, 3.0, 3.5, 2),
    "aborted": (3.0, 3.0, 3.25, 4.0, 4.5, 3),
    "never ran": (4.0, 4.0, None, None, None, 0),
}  # fmt: skip
STATUS = ["finished", "finished", "finished", "aborted", "failed"]


def bundle(vantage: str = "engine", drop: str = "", **tables: pa.Table) -> Bundle:
    names = ("arrival_s", "sent_s", "scheduled_s", "first_token_s", "finished_s", "output_tokens")
    columns: dict[str, Any] = dict(zip(names, zip(*ROWS.values(), strict=True), strict=True))
    columns |= {"request_id": list(ROWS), "prompt_tokens": [9] * len(ROWS), "status": STATUS}
    requests = pa.table({k: v for k, v in columns.items() if k != drop})
    requests = tables.pop("requests", requests)
    return Bundle(Path("none"), Manifest("measured", vantage), {"requests": requests, **tables})


def close(found: np.ndarray, want: list[float]) -> None:
    assert np.array_equal(found, np.array(want, float), equal_nan=True)


def test_an_engine_counts_from_the_arrival() -> None:
    found, none = request_metrics(bundle()), np.nan
    close(found["ttft"], [0.5, 1.0, 1.0, 1.0, none])
    close(found["e2e"], [2.5, 1.0, 1.5, none, none])
    close(found["tpot"], [0.5, none, 0.5, none, none])  # of one token there is none
    close(found["queue"], [0.25, 0.5, 0.25, 0.25, none])
    assert {*found} == {*METRICS} - {"itl"}


def test_a_client_counts_from_the_sending() -> None:
    found, none = request_metrics(bundle("client")), np.nan
    close(found["ttft"], [0.375, 1.0, 0.75, 1.0, none])
    close(found["e2e"], [2.375, 1.0, 1.25, none, none])
    close(found["tpot"], [0.5, none, 0.5, none, none])  # unmoved by the start


def test_a_client_that_did_not_note_the_sending_counts_from_when_it_was_due() -> None:
    found = request_metrics(bundle("client", drop="sent_s"))
    close(found["ttft"], [0.5, 1.0, 1.0, 1.0, np.nan])


def test_what_was_not_recorded_is_nan() -> None:
    found = request_metrics(bundle(drop="first_token_s"))
    assert np.isnan(found["ttft"]).all()
    assert np.isnan(found["tpot"]).all()
    close(found["e2e"], [2.5, 1.0, 1.5, np.nan, np.nan])


def test_gaps_between_chunks_of_a_client() -> None:
    times = pa.array([[0.5, 1.0, 2.5], [2.0], None, [], [0.75, 1.75]], LISTS)
    requests = bundle().requests.append_column("token_times_s", times)
    # in the order of the later token: 1.0 (0.5), 1.75 (1.0), 2.5 (1.5)
    close(inter_token_latencies(bundle("client", requests=requests)), [0.5, 1.0, 1.5])


def test_gaps_between_the_steps_that_emitted() -> None:
    keys = {"cluster": ["x"] * 4, "replica": [0] * 4}
    steps = {**keys, "step": [0, 1, 2, 3], "start_s": [0.0] * 4, "end_s": [1.0, 2.0, 4.0, 5.0]}
    rows = [  # step, request, emitted: the first step of b is a chunk of its prompt
        (0, "a", 1), (0, "b", 0), (1, "a", 1), (1, "b", 1), (2, "a", 2), (3, "a", 1), (3, "b", 1),
    ]  # fmt: skip
    step_requests = pa.table(
        {
            "cluster": ["x"] * 7, "replica": [0] * 7, "step": [r[0] for r in rows],
            "request_id": [r[1] for r in rows], "emitted_tokens": [r[2] for r in rows],
        }
    )  # fmt: skip
    found = inter_token_latencies(bundle(steps=pa.table(steps), step_requests=step_requests))
    # a: 1 -> 2 -> 4, 4 (two tokens in one step: no gap) -> 5; b: 2 -> 5
    assert sorted(found.tolist()) == [0.0, 1.0, 1.0, 2.0, 3.0]
    close(found[:1], [1.0])


def test_without_token_times_there_are_no_gaps() -> None:
    assert inter_token_latencies(bundle()).shape == (0,)


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_says_its_formula(name: str) -> None:
    assert METRICS[name].name == name
    assert METRICS[name].formula
