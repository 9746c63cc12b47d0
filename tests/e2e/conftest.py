"""The checkpoints that the tests against a real vLLM serve."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the checkpoints ``dense`` and ``moe``."""
    from vllm_server import make_checkpoints

    directory = tmp_path_factory.mktemp("models")
    make_checkpoints(directory)
    return directory
