"""Fitting on one load halves the error at another, and a run that was fitted is no hold-out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from reports.scorecard_file import read_scorecard
from traces.samples import sample_runs

Frontier = Callable[..., Result]


def validated(frontier: Frontier, home: Path, fitted: list[Path], held: list[Path],
              *options: str) -> Path:  # fmt: skip
    """Fit, replay and validate under ``home``; returns the report's directory."""
    measured, *repeats = held
    assert frontier("fit", *fitted, "--out", home / "p", *options).exit_code == 0
    done = frontier("replay", measured, "--operators", home / "p", "--out", home / "s")
    assert done.exit_code == 0, done.output
    given = [part for repeat in repeats for part in ("--repeats", repeat)]
    done = frontier("validate", measured, home / "s", *given, "--require-holdout",
                    "--out", home / "report")  # fmt: skip
    assert done.exit_code == 0, done.output
    return home / "report"


@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.parametrize(("fitted", "held"), [("low", "high"), ("high", "low")])
def test_a_fit_at_one_load_halves_the_error_at_another(
    frontier: Frontier, tmp_path: Path, model: str, fitted: str, held: str
) -> None:
    seen, runs = sample_runs(f"{model}-{fitted}")[:1], sample_runs(f"{model}-{held}")[:2]
    before = validated(frontier, tmp_path / "before", seen, runs, "--uncalibrated")
    after = validated(frontier, tmp_path / "after", seen, runs)
    print(frontier("compare", before, after).output)
    cards = [read_scorecard(path) for path in (before, after)]
    assert [card.provenance["holdout"] for card in cards] == [True, True]
    for metric in ("ttft", "tpot", "e2e"):
        old, new = (card.metrics[metric].statistics["mean"].error for card in cards)
        assert old
        assert new is not None
        assert abs(new) <= 0.5 * abs(old), metric


def test_a_leak_is_refused(frontier: Frontier, tmp_path: Path, dense_profile: Path) -> None:
    """``dense_profile`` was fitted on the first run of dense-low, here a mere repeat."""
    first, second = sample_runs("dense-low")[:2]
    frontier("replay", second, "--operators", dense_profile, "--out", tmp_path / "s")
    held = ["validate", second, tmp_path / "s", "--out", tmp_path / "o", "--require-holdout"]
    assert frontier(*held).exit_code == 0
    leaked = frontier(*held, "--repeats", first)
    assert leaked.exit_code == 2
    assert "its operator profile was fitted on rep1: no hold-out" in leaked.output
