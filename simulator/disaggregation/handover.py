"""What became of each request between the prefill and the decode side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

TIMES = ("start_ps", "end_ps")


class Handovers:
    """Columns with a row for each request; times are picoseconds, -1 before they happened.

    ``kept``: its blocks are still held for it on the prefill side. ``lost``: its lease ended
    before the KV had been taken.
    """

    def __init__(self, requests: int) -> None:
        self.prefill_replica = [-1] * requests
        self.decode_replica = [-1] * requests
        self.finished_ps = [-1] * requests  # prefill
        self.asked_ps = [-1] * requests  # blocks are reserved and the KV is asked for
        self.start_ps = [-1] * requests
        self.end_ps = [-1] * requests
        self.blocks = [0] * requests
        self.kept = [False] * requests
        self.lost = [False] * requests

    def column(self, name: str) -> Ints:
        """A column of numbers."""
        return np.array(getattr(self, name), np.int64)
