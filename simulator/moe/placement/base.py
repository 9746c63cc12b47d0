"""What a placement is: which expert each slot of each rank holds."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Placement(Protocol):
    """Experts to ranks."""

    def slots(self, shares: Floats, ranks: int, redundant: int) -> Ints:
        """Expert in each slot, ``(layers, ranks, experts a rank)``.

        ``shares``: of a layer's tokens the share each expert gets, ``(layers, experts)``.
        Every expert has a slot; those with several split its tokens evenly. Raises
        ConfigError if the experts, ``redundant`` ones included, cannot be spread so.
        """
