"""Each arrival to the replica where it waits for the least work, cached prefixes counted.

The cost of NVIDIA Dynamo's KV-aware router: the blocks a request would have to prefill at a
replica, and those of the requests it has to finish there. What a replica has cached is taken
to be what it was sent, in blocks of the engine; evictions are not known to the router.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.clock import NEVER
from simulator.demand import Demand
from simulator.routing.base import Load


class PrefixAware:
    """Counts blocks; the first of equals takes the request."""

    look_ps = NEVER

    def __init__(self, replicas: Sequence[Load], demand: Demand) -> None:
        self._demand = demand
        self._sent = np.zeros((demand.prefixes.contents, len(replicas)), np.bool_)
        self._work = np.zeros(len(replicas), np.int64)
        self._added: dict[int, int] = {}

    def observe(self, now_ps: int) -> None:
        pass

    def choose(self, request: int = 0) -> int:
        demand = self._demand
        first, last = demand.prefixes.offsets[request : request + 2]
        codes = demand.prefixes.codes[first:last]
        whole = -(-int(demand.records["prompt"][request]) // demand.config.block_size)
        known = np.logical_and.accumulate(self._sent[codes]).sum(axis=0)
        cost = self._work + (whole - np.minimum(known, whole))
        chosen = int(np.argmin(cost))
        self._added[request] = int(cost[chosen] - self._work[chosen])
        self._work[chosen] = cost[chosen]
        self._sent[codes, chosen] = True
        return chosen

    def finished(self, replica: int, request: int = 0) -> None:
        self._work[replica] -= self._added.pop(request)
