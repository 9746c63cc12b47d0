"""Every request is compared or counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_bundles import fake_bundle

from traces.errors import TraceError
from validation.pairing import pair, refuse_same_run, rows_with_ids


def test_every_request_is_accounted_for(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", requests=40, warmups=3, aborted=2)
    simulated = fake_bundle(tmp_path / "s", requests=36, warmups=3, kind="simulated")
    pairing = pair(measured, simulated)
    here, there = pairing.sides
    assert len(pairing.ids) == 36
    assert (here.requests, here.warmups, here.unmatched) == (43, 3, 4)
    assert (there.requests, there.warmups, there.unmatched) == (39, 3, 0)
    assert pairing.matched == 36
    assert here.failed == {}  # the aborted two are among the unmatched


def test_a_request_that_failed_on_one_side_is_counted_there(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", requests=20, aborted=5)
    simulated = fake_bundle(tmp_path / "s", requests=20)
    pairing = pair(measured, simulated)
    assert (len(pairing.ids), pairing.matched) == (15, 20)
    assert pairing.sides[0].failed == {"aborted": 5}
    assert pairing.sides[1].failed == {}


def test_pairs_are_the_same_requests_whatever_the_row_order(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", requests=30)
    simulated = fake_bundle(tmp_path / "s", requests=30, warmups=7)
    pairing = pair(measured, simulated)
    ids = [
        bundle.requests.column("request_id").take(rows).to_pylist()
        for bundle, rows in ((measured, pairing.measured), (simulated, pairing.simulated))
    ]
    assert ids[0] == ids[1] == pairing.ids.to_pylist()
    assert list(rows_with_ids(simulated, pairing.ids)) == list(pairing.simulated)


def test_other_lengths_are_counted(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", requests=30)
    simulated = fake_bundle(tmp_path / "s", requests=30, warmups=1)  # lengths move by one
    assert pair(measured, simulated).tokens_differ > 20


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    measured = fake_bundle(tmp_path / "m", requests=5)
    simulated = fake_bundle(tmp_path / "s", requests=5, prefix="other")
    with pytest.raises(TraceError, match="no request is in both"):
        pair(measured, simulated)
    unfinished = fake_bundle(tmp_path / "u", requests=5, aborted=5)
    with pytest.raises(TraceError, match="no request finished in both"):
        pair(unfinished, measured)


def test_one_run_given_twice_is_no_noise_floor() -> None:
    refuse_same_run([("a", "1"), ("b", "2")])
    with pytest.raises(TraceError, match="b: the same run as a"):
        refuse_same_run([("a", "1"), ("b", "1")])
