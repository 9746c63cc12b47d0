"""What tests of several folders need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from replay.cli import main
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import save_profile
from traces.bundle import read_bundle
from traces.samples import sample_runs

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """Public traces and measurements of others, which are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the project")
    return SHARED


@pytest.fixture(scope="session")
def dense_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile fitted on one shipped capture of the dense model."""
    path = tmp_path_factory.mktemp("profile")
    save_profile(fit_profile([read_bundle(sample_runs("dense-low")[0])]), path)
    return path


@pytest.fixture
def frontier() -> Callable[..., Result]:
    """Run the command line."""
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])
