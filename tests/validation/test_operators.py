"""Scoring operator models on held-out rows: figures on kernels made here, errors, the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from traces.errors import ConfigError
from validation.operators import score

KEY = {
    "device": "h100_sxm", "engine": "vllm", "engine_version": "0.24.0", "backend": "b",
    "dtype": "bfloat16", "timing": "kernel",
}  # fmt: skip


def gemms(noise: float = 0.0) -> pd.DataFrame:
    """A grid of GEMMs whose time is launch + roofline, with log-normal noise.

    Too small for trees, which tests/simulator/test_operators_fit.py is about: fitted in no time.
    """
    rng = np.random.default_rng(0)
    rows = []
    for m in 2 ** np.arange(0, 13):
        for n in (2048, 4096, 8192):
            for k in (4096, 8192):
                flops, moved = 2.0 * m * n * k, 2.0 * (m * k + n * k + m * n)
                seconds = 3e-6 + max(flops / 7e14, moved / 2.8e12)
                seconds *= np.exp(noise * rng.standard_normal())
                shape = {"operator": "linear", "m": m, "n": n, "k": k}
                rows.append({**shape, **KEY, "duration_s": seconds})
    return pd.DataFrame(rows)


def test_a_held_grid_line_is_predicted_from_the_others() -> None:
    found = score(gemms(), "m in [16, 256]")["linear"]
    assert found.n == 2 * 3 * 2
    assert found.mape < 0.05
    assert found.within_10 > 0.9
    assert (found.extrapolated, found.refused) == (0.0, 0)


def test_beyond_the_grid_is_extrapolation() -> None:
    found = score(gemms(), "m >= 2048")["linear"]
    assert found.extrapolated == 1.0


def test_noise_shows_as_error() -> None:
    quiet, noisy = (score(gemms(noise), "m in [16, 256]")["linear"].mape for noise in (0.0, 0.2))
    assert noisy > 0.1 > quiet


def test_a_key_with_too_few_rows_left_is_refused() -> None:
    few = gemms().iloc[:4].assign(device="h200_sxm")
    found = score(pd.concat([gemms(), few]), "m == 16 or device == 'h200_sxm'")["linear"]
    assert (found.n, found.refused) == (6, 4)


@pytest.mark.parametrize(("holdout", "message"), [
    ("contxt > 5", "--holdout: unknown column 'contxt'"),
    ("m >", "--holdout 'm >': not a pandas query"),
    ("m > 1e9", "--holdout 'm > 1e9': holds out no row"),
    ("m > 0", "--holdout: holds out every linear row, none is left to fit"),
])  # fmt: skip
def test_expressions_that_cannot_be_used(holdout: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        score(gemms(), holdout)
    assert str(error.value).startswith(message)


def test_the_command_writes_fractions(tmp_path: Path, frontier: Callable[..., Result]) -> None:
    gemms().to_parquet(tmp_path / "kernels.parquet")
    out = tmp_path / "s.json"
    result = frontier("operators", "score", tmp_path, "--holdout", "m == 64", "--out", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["linear"]
    assert found["n"] == 6
    assert 0 <= found["mape"] < 0.05
    assert set(found) >= {"n", "mape", "p50", "p95", "within_6", "within_10", "extrapolated"}
    missing = frontier("operators", "score", tmp_path / "none", "--holdout", "m", "--out", out)
    assert missing.exit_code == 2
    assert "not readable as a table of kernels" in missing.stderr
