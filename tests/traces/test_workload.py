"""Workloads from columns and from bundles, scaled and cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from traces.bundle import Manifest, write_bundle
from traces.errors import TraceError
from traces.load import load_workload
from traces.workload import DEMAND_COLUMNS, first_requests, make_workload, scale_rate

COLUMNS: dict[str, Any] = {
    "arrival_s": [2.0, 1.0, 1.0, 0.5],
    "prompt_tokens": [4, 3, 2, 1],
    "output_tokens": [1, 1, 1, 1],
    "think_s": [0.0, 1.0, None, 3.0],
}


def bundle(path: Path, notes: dict[str, Any] | None = None, **changed: Any) -> Path:
    columns = {
        "request_id": ["a", "b", "c"], "arrival_s": [0.0, 1.0, 2.0], "prompt_tokens": [5, 6, 7],
        "output_tokens": [2, 0, 3], "priority": [-1, 0, 1], "replica": [0, 0, 0],
        "finished_s": [3.0, None, None], "status": ["finished", "failed", "aborted"], **changed,
    }  # fmt: skip
    manifest = Manifest("measured", hash_block_tokens=16, notes=notes or {})
    write_bundle(path, manifest, {"requests": pa.table(columns)})
    return path


def test_rows_are_sorted_by_arrival_and_ties_keep_their_order() -> None:
    table = make_workload(COLUMNS, "here").requests
    assert table["arrival_s"].to_pylist() == [0.5, 1.0, 1.0, 2.0]
    assert table["prompt_tokens"].to_pylist() == [1, 3, 2, 4]
    assert table["request_id"].to_pylist() == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"prompt_tokens": [4, 3, 2, 0]}, "here: row 0, column 'prompt_tokens' is 0: must be"),
        ({"arrival_s": [2.0, 1.0, -1.0, 0.5]}, "here: row 0, column 'arrival_s' is -1.0: must be"),
        ({"request_id": ["a", "b", "b", "c"]}, "here: request_id='b' appears 2 times"),
        ({"output_tokens": [1, 1, None, 1]}, "here: row 2, column 'output_tokens' is empty"),
        ({n: [] for n in COLUMNS}, "here: an empty workload (no request in it)"),
    ],
)
def test_what_a_workload_cannot_hold(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(TraceError) as error:
        make_workload({**COLUMNS, **changed}, "here")
    assert str(error.value).startswith(what)


def test_scaling_the_rate_scales_pauses_too() -> None:
    table = scale_rate(make_workload(COLUMNS, "here"), 2).requests
    assert table["arrival_s"].to_pylist() == [0.25, 0.5, 0.5, 1.0]
    assert table["think_s"].to_pylist() == [1.5, 0.5, None, 0.0]


@pytest.mark.parametrize("factor", [0, -1, np.nan, np.inf])
def test_impossible_rates(factor: float) -> None:
    with pytest.raises(TraceError, match=r"rate scale is .*, must be a number above 0"):
        scale_rate(make_workload(COLUMNS, "here"), factor)


def test_the_first_requests() -> None:
    workload = make_workload(COLUMNS, "here")
    assert first_requests(workload, 2).requests["prompt_tokens"].to_pylist() == [1, 3]
    assert len(first_requests(workload, 99)) == 4
    with pytest.raises(TraceError, match="limit is 0, must be at least 1 request"):
        first_requests(workload, 0)


def test_a_bundle_asks_again_for_what_can_be_asked(tmp_path: Path) -> None:
    workload = load_workload(bundle(tmp_path / "b"))
    assert workload.requests["request_id"].to_pylist() == ["a", "c"]
    assert workload.requests.column_names == [
        n for n in DEMAND_COLUMNS if n in ("request_id", "arrival_s", "prompt_tokens",
                                           "output_tokens", "priority")
    ]  # fmt: skip
    assert (workload.source, workload.hash_block_tokens) == ("bundle b", 16)
    assert workload.notes == {
        "requests without an output token skipped": 1,
        "requests that did not finish, asked for the tokens they had produced": 1,
    }


def test_a_bundle_without_any_answer_is_an_empty_workload(tmp_path: Path) -> None:
    path = bundle(tmp_path / "b", output_tokens=[0, 0, 0])
    with pytest.raises(TraceError, match="b: an empty workload"):
        load_workload(path)
