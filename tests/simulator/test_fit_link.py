"""Set-up, bandwidth and the proxy's time, found again in a simulated pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pd_worlds import BLOCK_BYTES, requests_of, run_pd
from worlds import MS

from simulator.fleet import CompiledFleet
from simulator.step_time.fit_link import fit_link, link_line
from traces.bundle import Bundle, Manifest


def test_what_the_link_was_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = [(400 * i, int(n), 3) for i, n in enumerate(rng.integers(1, 120, 40))]
    tables = run_pd(
        requests_of(*rows), CompiledFleet, bandwidth_gb_s=0.5, setup_us=700.0, proxy_ps=4 * MS,
        frontend_ps=MS,
    )[1]  # fmt: skip
    clusters = [{"name": "prefill", "role": "prefill"}, {"name": "decode", "role": "decode"}]
    bundle = Bundle(Path("none"), Manifest("measured", deployment={"clusters": clusters}), tables)
    found = fit_link([bundle], frontend_s=1e-3)
    assert found["setup_us"] == pytest.approx(700, rel=1e-3)
    assert found["bandwidth_gb_s"] == pytest.approx(0.5, rel=1e-3)
    assert found["proxy_us"] == pytest.approx(4000, rel=1e-3)
    assert found["transfers"] == 40
    assert found["mape"] < 1e-3
    assert "set-up 700.0 us, bandwidth 0.500 GB/s, proxy 4000.0 us" in link_line(found)
    assert tables["transfers"]["bytes"].to_numpy().max() <= 30 * BLOCK_BYTES
