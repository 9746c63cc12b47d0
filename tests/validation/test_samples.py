"""What is compared: values of each metric over the compared requests and steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from fake_bundles import BLOCKS, fake_bundle

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle
from validation.pairing import pair
from validation.samples import View
from validation.series import in_flight, over_steps, throughput


def whole(bundle: Bundle, rows: int | None = None) -> dict[str, np.ndarray]:
    return View(bundle, np.arange(rows or len(bundle.requests))).values


def client(path: Path) -> Bundle:
    """Three requests by hand: 1, 2 and 4 output tokens."""
    requests = pa.table(
        {
            "request_id": ["a", "b", "c"],
            "arrival_s": [0.0, 1.0, 2.0],
            "sent_s": [0.5, 1.0, 2.0],
            "prompt_tokens": [5, 5, 5],
            "output_tokens": [1, 2, 4],
            "first_token_s": [1.5, 1.5, 2.25],
            "finished_s": [1.5, 3.5, 2.75],
            "token_times_s": [[1.5], [1.5, 3.5], [2.25, 2.5, 2.5, 2.75]],
            "status": ["finished"] * 3,
        }
    )
    write_bundle(path, Manifest(kind="measured", vantage="client"), {"requests": requests})
    return read_bundle(path)


def test_request_metrics_by_hand_as_vllm_bench_serve(tmp_path: Path) -> None:
    values = whole(client(tmp_path / "c"))
    np.testing.assert_allclose(values["ttft"], [1.0, 0.5, 0.25])
    np.testing.assert_allclose(values["e2e"], [1.0, 2.5, 0.75])
    # One output token has no time per output token; vLLM leaves it out of the statistics.
    np.testing.assert_allclose(values["tpot"], [np.nan, 2.0, 0.5 / 3])
    np.testing.assert_allclose(values["throughput"], [7 / 3.5])
    assert "queue" not in values


def test_gaps_between_tokens_come_in_the_order_of_time(tmp_path: Path) -> None:
    np.testing.assert_allclose(whole(client(tmp_path / "c"))["itl"], [0.25, 0.0, 0.25, 2.0])


def test_engine_gaps_add_up_to_the_decode_time(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "e", requests=30)
    values = whole(bundle)
    requests = bundle.requests
    decode = requests["finished_s"].to_numpy() - requests["first_token_s"].to_numpy()
    assert values["itl"].sum() == pytest.approx(decode.sum())
    assert len(values["itl"]) == requests["output_tokens"].to_numpy().sum() - 30


def test_only_the_compared_requests_count(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", requests=30, warmups=10)
    pairing = pair(measured, fake_bundle(tmp_path / "s", requests=30, warmups=10))
    seen = View(measured, pairing.measured)
    values = seen.values
    all_values = whole(measured)
    assert len(values["ttft"]) == 30
    np.testing.assert_array_equal(values["ttft"], all_values["ttft"][10:])
    assert len(values["itl"]) < len(all_values["itl"])
    start = measured.table("steps")["start_s"].to_numpy()
    assert len(values["step_time"]) == (start >= seen.first_s).sum()


def test_step_metrics_by_hand(tmp_path: Path) -> None:
    n = 4
    steps = {
        "cluster": ["main"] * n, "replica": [0] * n, "step": list(range(n)),
        "start_s": [0.0, 1.0, 2.0, 3.0], "end_s": [0.5, 1.25, 2.5, 3.5],
        "prefill_tokens": [8, 0, 0, 0], "decode_tokens": [0, 2, 0, 1],
        "running": [1, 2, 2, 1], "waiting": [0] * n, "free_blocks": [100, 75, 75, 50],
        "dummy": [False, None, None, True],
    }  # fmt: skip
    requests = {
        "request_id": ["a"], "arrival_s": [0.0], "prompt_tokens": [8], "output_tokens": [2],
        "finished_s": [3.5],
    }  # fmt: skip
    clusters = [{"name": "main", "engine": {"num_gpu_blocks": 101}}]
    write_bundle(
        tmp_path / "b",
        Manifest(kind="measured", deployment={"clusters": clusters}),
        {"requests": pa.table(requests), "steps": pa.table(steps)},
    )
    values = whole(read_bundle(tmp_path / "b"))
    np.testing.assert_allclose(values["step_time"], [0.5, 0.25])  # no tokens, dummy: left out
    np.testing.assert_allclose(values["batch_size"], [1, 2])
    np.testing.assert_allclose(values["kv_use"], [0.0, 0.25])


def test_kv_use_needs_the_capacity(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "b", requests=5, deployment={"clusters": [{"name": "main"}]})
    assert "kv_use" not in whole(bundle)
    assert "step_time" in whole(bundle)


def test_in_flight_keeps_the_area_under_the_curve(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "b", requests=50)
    seen = View(bundle, np.arange(50))
    series = in_flight(seen, points=37)
    width = (seen.last_s - seen.first_s) / 37
    assert (series.value * width).sum() == pytest.approx(whole(bundle)["e2e"].sum())
    assert series.value.min() >= 0


def test_throughput_keeps_every_token(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "b", requests=50)
    seen = View(bundle, np.arange(50))
    series = throughput(seen, points=29)
    width = (seen.last_s - seen.first_s) / 29
    assert (series.value * width).sum() == pytest.approx(
        bundle.requests["output_tokens"].to_numpy().sum()
    )
    assert series.value.min() > -1e-6
    by_hand = throughput(View(client(tmp_path / "c"), np.arange(3)), points=7)  # intervals of 0.5 s
    # a: one token at 1.5; b: at 1.5 and by 3.5; c: at 2.25, three more by 2.75
    expected = [0, 0, 2, 0.25, 0.25 + 1 + 1.5, 0.25 + 1.5, 0.25]
    np.testing.assert_allclose(by_hand.value * 0.5, expected, atol=1e-9)


def test_steps_over_time_average_within_an_interval(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path / "b", requests=50)
    seen = View(bundle, np.arange(50))
    (mean,) = over_steps(seen, "batch_size", points=1).value  # type: ignore[union-attr]
    assert mean == pytest.approx(whole(bundle)["batch_size"].mean())
    kv = over_steps(seen, "kv_use", points=60)
    assert kv
    assert np.nanmax(kv.value) <= 1 - 1 / BLOCKS
    assert over_steps(seen, "no such metric") is None
