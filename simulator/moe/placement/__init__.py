"""Placements by name, as ``moe.placement`` of a deployment names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from simulator.moe.placement.base import Placement
from simulator.moe.placement.eplb import Eplb
from simulator.moe.placement.linear import Linear, RoundRobin
from simulator.moe.placement.listed import Listed
from traces.errors import ConfigError, nearest

PLACEMENTS: dict[str, Callable[[], Placement]] = {
    "linear": Linear, "round_robin": RoundRobin, "eplb": Eplb,
}  # fmt: skip


def make_placement(given: Any, home: Path) -> Placement:
    """A placement by its name, or from ``{file: PATH}`` relative to ``home``."""
    if isinstance(given, dict) and set(given) == {"file"}:
        return Listed(home / str(given["file"]))
    if given not in PLACEMENTS:
        raise ConfigError(f"moe.placement: unknown {given!r}{nearest(str(given), PLACEMENTS)}")
    return PLACEMENTS[given]()


__all__ = ["PLACEMENTS", "Placement", "make_placement"]
