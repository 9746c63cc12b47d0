"""The noise floor of runs is what numpy says of them, pair by pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_bundles import fake_bundle

from traces.errors import TraceError
from traces.metrics import request_metrics
from validation.floor import noise_floor


def test_the_floor_by_hand(tmp_path: Path) -> None:
    runs = [fake_bundle(tmp_path / f"r{i}", seed=i, warmups=2) for i in range(3)]
    floor = noise_floor(runs)
    assert (floor.runs, floor.requests) == (["r0", "r1", "r2"], 120)
    means = [float(np.nanmean(request_metrics(b)["tpot"][2:])) for b in runs]
    found = floor.metrics["tpot"].statistics["mean"]
    assert found.mean == pytest.approx(np.mean(means))
    assert found.noise == pytest.approx(np.std(means, ddof=1) / np.mean(means))
    apart = [abs(b / a - 1) for i, a in enumerate(means) for b in means[i + 1 :]]
    assert (found.smallest, found.largest) == pytest.approx((min(apart), max(apart)))
    assert 0 < floor.metrics["tpot"].distances["ks"] < 0.3
    assert list(floor.metrics["throughput"].statistics) == ["mean"]


def test_only_requests_that_finished_in_all_runs_count(tmp_path: Path) -> None:
    runs = [fake_bundle(tmp_path / f"r{i}", seed=i, aborted=i) for i in range(3)]
    assert noise_floor(runs).requests == 118


def test_what_has_no_floor_is_refused(tmp_path: Path) -> None:
    one, other = (fake_bundle(tmp_path / f"r{i}", seed=i) for i in range(2))
    with pytest.raises(TraceError, match="two runs of a workload or more"):
        noise_floor([one])
    with pytest.raises(TraceError, match="the same run as"):
        noise_floor([one, other, one])
    stranger = fake_bundle(tmp_path / "x", prefix="x")
    with pytest.raises(TraceError, match="no request finished in all runs"):
        noise_floor([one, other, stranger])
