"""What several tests of ``traces`` need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from replay.cli import main

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """Public traces and measurements of others, which are no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the project")
    return SHARED


@pytest.fixture
def frontier() -> Callable[..., Result]:
    """Run the command line."""
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])
