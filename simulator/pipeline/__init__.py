"""How attention and FFN ranks overlap within a step. One strategy a file.

``graph.py`` turns a strategy into a max-plus recurrence, ``bubbles.py`` says who waited for
whom.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.pipeline.base import STAGES, Stage, Strategy, Work
from simulator.pipeline.bubbles import Idle, idle_times
from simulator.pipeline.graph import Lanes, Pipeline, Span
from simulator.pipeline.none import NoPipeline
from simulator.pipeline.ping_pong import PingPong
from simulator.pipeline.shared_expert import SharedExpert
from simulator.pipeline.three_stage import ThreeStage
from simulator.pipeline.two_batch import TwoBatch
from traces.errors import ConfigError, nearest

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "none": NoPipeline,
    "two_batch": TwoBatch,
    "ping_pong": PingPong,
    "three_stage": ThreeStage,
    "shared_expert": SharedExpert,
}


def create_strategy(name: str) -> Strategy:
    """A strategy by its ``pipeline.policy``; raises ConfigError naming the known ones."""
    if name not in STRATEGIES:
        raise ConfigError(f"pipeline.policy: unknown {name!r}{nearest(name, STRATEGIES)}")
    return STRATEGIES[name]()


__all__ = [
    "STAGES", "STRATEGIES", "Idle", "Lanes", "Pipeline", "Span", "Stage", "Strategy", "Work",
    "create_strategy", "idle_times",
]  # fmt: skip
