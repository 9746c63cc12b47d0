"""`frontier operators score`, `fit` and `show`: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from replay.cli import main
from validation.operators import held_out

KEY = {"device": "h100_sxm", "engine": "vllm", "engine_version": "0.24.0", "backend": "cublas",
       "dtype": "bfloat16", "timing": "kernel"}  # fmt: skip
FIELDS = ["n", "mape", "p50", "p95", "within_6", "within_10", "extrapolated", "refused"]


def kernels() -> pd.DataFrame:
    """GEMMs and element-wise layers of a law with 1 % noise."""
    m, n = (a.ravel() for a in np.meshgrid(2 ** np.arange(12), 2 ** np.arange(6, 12)))
    gemm = pd.DataFrame({"operator": "linear", "m": m, "n": n, "k": 1024, **KEY})
    gemm["duration_s"] = 3e-6 + 2 * m * n * 1024 / 5e14 + 2048 * n / 2e12
    tokens, hidden = (a.ravel() for a in np.meshgrid(2 ** np.arange(12), [512, 2048]))
    norm = pd.DataFrame({"operator": "elementwise", "layer": "norm", "tokens": tokens,
                         "hidden": hidden, **KEY})  # fmt: skip
    norm["duration_s"] = 2e-6 + 4 * tokens * hidden / 2e12
    rows = pd.concat([gemm, norm], ignore_index=True)
    rows["duration_s"] *= np.exp(np.random.default_rng(0).normal(0, 0.01, len(rows)))
    return rows


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "profile"
    path.mkdir()
    kernels().convert_dtypes().to_parquet(path / "kernels.parquet")
    return path


def score(profile: Path, holdout: str, out: Path) -> Result:
    arguments = ["operators", "score", str(profile), "--holdout", holdout, "--out", str(out)]
    return CliRunner().invoke(main, arguments)


def test_scores_the_families_that_have_held_out_rows(profile: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "s.json"
    result = score(profile, "m in [16, 256]", out)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    assert list(found) == ["linear"]
    assert list(found["linear"]) == FIELDS
    assert found["linear"]["n"] == 12
    assert found["linear"]["within_10"] >= 0.9
    assert found["linear"]["extrapolated"] == 0
    assert "within 10" in result.output


def test_takes_the_file_itself_and_is_deterministic(profile: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert score(profile / "kernels.parquet", "tokens == 64", tmp_path / name).exit_code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_largest_count_as_extrapolated(profile: Path, tmp_path: Path) -> None:
    score(profile, "m >= 1024", tmp_path / "s")
    assert json.loads((tmp_path / "s").read_text())["linear"]["extrapolated"] == 1.0


@pytest.mark.parametrize(
    ("holdout", "said"),
    [
        ("m > 1e9", "holds out no row"),
        ("duration_s > 0", "holds out every elementwise row, none is left to fit"),
        ("operator == 'linear'", "holds out every linear row, none is left to fit"),
        ("tokns > 4", "unknown column 'tokns'; did you mean 'tokens'?"),
        ("m >", "not a pandas query"),
        ("m + 1", "not a pandas query"),
        ("backend > 3", "not a pandas query"),
        ("duration_s", "not a pandas query"),
    ],
)
def test_refuses_a_bad_expression(profile: Path, tmp_path: Path, holdout: str, said: str) -> None:
    result = score(profile, holdout, tmp_path / "s")
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1
    assert len(result.output) < 300
    assert not (tmp_path / "s").exists()


def test_refuses_to_mix_timings(tmp_path: Path) -> None:
    rows = kernels()
    rows.loc[rows.m <= 64, "timing"] = "with_launch"
    rows.to_parquet(tmp_path / "kernels.parquet")
    result = score(tmp_path, "m <= 64", tmp_path / "s")
    assert result.exit_code == 2
    assert "timed with_launch, those left kernel; the two never mix" in result.output


def test_rows_of_a_key_without_any_left_are_refused_and_counted(tmp_path: Path) -> None:
    rows = pd.concat([kernels(), kernels().assign(backend="other")], ignore_index=True)
    rows.to_parquet(tmp_path / "kernels.parquet")
    result = score(tmp_path, "m == 16 or (m > 0 and backend == 'other')", tmp_path / "s")
    found = json.loads((tmp_path / "s").read_text())["linear"]
    assert (found["n"], found["refused"]) == (6, 72)
    assert result.output.splitlines()[-1].split()[-1] == "72"


def test_a_family_with_nothing_left_is_refused_beside_others(profile: Path, tmp_path: Path) -> None:
    result = score(profile, "m == 16 or tokens > 0", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert "holds out every elementwise row, none is left to fit" in result.stderr
    found = json.loads((tmp_path / "s").read_text())
    assert found["linear"]["n"] == 6
    assert (found["elementwise"]["n"], found["elementwise"]["refused"]) == (0, 24)
    assert found["elementwise"]["mape"] is None


def test_no_key_with_enough_rows_left_is_said_before_any_fit(tmp_path: Path) -> None:
    rows = pd.concat([kernels(), kernels().assign(backend="other")], ignore_index=True)
    rows.to_parquet(tmp_path / "kernels.parquet")
    result = score(tmp_path, "m > 0 and backend == 'other'", tmp_path / "s")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "too few linear rows are left of any key to fit" in result.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timing": "cold"}, "timing"),
        ({"duration_s": 0.0}, "duration_s must be above 0"),
        ({"speed": 1}, "unknown column 'speed'"),
    ],
)
def test_refuses_an_unsound_table(tmp_path: Path, change: dict[str, object], said: str) -> None:
    kernels().assign(**change).to_parquet(tmp_path / "kernels.parquet")
    result = score(tmp_path, "m == 16", tmp_path / "s")
    assert result.exit_code == 2
    assert said in result.output


def test_refuses_no_table(tmp_path: Path) -> None:
    result = score(tmp_path, "m == 16", tmp_path / "s")
    assert result.exit_code == 2
    assert "not readable as a table of kernels" in result.output


def test_a_query_may_use_any_column() -> None:
    rows = kernels()
    assert held_out(rows, "layer == 'norm' and hidden == 512").sum() == 12
    assert held_out(rows, "n in [64, 128] and m > 100").sum() == 10
    assert held_out(rows, "index % 10 == 3").sum() == 10


class TestShow:
    def test_lists_families_ranges_and_errors(self, profile: Path) -> None:
        result = CliRunner().invoke(main, ["operators", "show", str(profile)])
        assert result.exit_code == 0, result.output
        assert "linear  h100_sxm vllm 0.24.0 cublas bfloat16 kernel  72 rows" in result.output
        assert "m 1..2048" in result.output
        assert "hidden lines of m" in result.output
        assert not (profile / "operators.npz").exists()

    def test_draws_self_contained_plots(self, profile: Path, tmp_path: Path) -> None:
        arguments = ["operators", "show", str(profile), "--out", str(tmp_path / "plots")]
        assert CliRunner().invoke(main, arguments).exit_code == 0
        page = (tmp_path / "plots" / "operators.html").read_text()
        assert page.count("plotly-graph-div") == 2
        assert "<script src=" not in page
        assert "Each point is a measured kernel" in page

    def test_shows_what_was_fitted_until_the_kernels_change(self, profile: Path) -> None:
        assert CliRunner().invoke(main, ["operators", "fit", str(profile)]).exit_code == 0
        assert (profile / "operators.npz").is_file()
        shown = CliRunner().invoke(main, ["operators", "show", str(profile)])
        assert "fitted" not in shown.stderr
        kernels()[:72].to_parquet(profile / "kernels.parquet")
        again = CliRunner().invoke(main, ["operators", "show", str(profile)])
        assert "fitted 1 of 1: linear" in again.stderr
        assert "elementwise" not in again.stdout
