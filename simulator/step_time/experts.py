"""What the experts of a deployment get and take: their loads, and the tables baked from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.moe.laws import LoadLaw, Recorded, Uniform
from simulator.moe.placement import PLACEMENTS, Placement

Floats = npt.NDArray[np.float64]

DRAWS = 32
MOST_STEPS = 2048  # of a recorded run


@dataclass(frozen=True, slots=True)
class ExpertLoads:
    """A load law and a placement, and how the deployment says them (for digests and notes)."""

    law: LoadLaw = field(default_factory=Uniform)
    placement: Placement = field(default_factory=PLACEMENTS["linear"])
    said: dict[str, Any] = field(default_factory=lambda: {"from": "uniform"})

    @property
    def draws(self) -> int:
        """Draws of a step's loads; a recorded run has its own, in their order."""
        if isinstance(self.law, Recorded) and not self.law.resampled:
            return min(len(self.law.record.counts), MOST_STEPS)
        return DRAWS


@dataclass(slots=True)
class ExpertTables:
    """Seconds in a step over ``grid`` tokens of all ranks, one line a draw.

    With ``beside``, where tokens of a prompt are alike, over ``grid`` tokens of prompts and
    ``beside`` others: ``(draws, others, prompts)``.

    ``padded[m]``: tokens of all ranks where the fullest has m and CUDA graphs make all run as
    many; ``most`` the largest number of tokens that rests on measurements; ``layers`` those
    with experts.
    """

    grid: Floats
    padded: Floats
    parts: dict[str, Floats]
    most: int
    layers: int
    notes: dict[str, Any]
    beside: Floats = field(default_factory=lambda: np.zeros(0))
