"""What the overlap of micro-batches costs a step, beyond pricing its operators."""

from __future__ import annotations

import time

import numpy as np
import pytest

from simulator.pipeline import Pipeline, create_strategy

pytestmark = pytest.mark.bench
LAYERS, MICRO_BATCHES, BAR_US = 60, 3, 2.0
STEPS = 50_000


@pytest.mark.parametrize("policy", ["ping_pong", "three_stage", "shared_expert"])
def test_recurrence(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    """CPU time of a step's recurrence, with the call from Python; best of five rounds."""
    pipeline = Pipeline(create_strategy(policy), LAYERS, MICRO_BATCHES)
    rng = np.random.default_rng(0)
    pipeline.durations[:] = rng.integers(1, 10**9, pipeline.durations.shape)
    rounds = []
    for _ in range(5):
        begun_s = time.process_time()
        for _ in range(STEPS):
            pipeline.evaluate()
        rounds.append((time.process_time() - begun_s) / STEPS * 1e6)
    with capsys.disabled():
        print(f"\n{policy}: {LAYERS} layers x {MICRO_BATCHES}: {min(rounds):.2f} us a step")
    assert min(rounds) < BAR_US
