"""A deployment with attention and FFN apart, with the prices of both: what is to be timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.deployment import Cluster, Link
from simulator.model import ModelSpec
from simulator.pipeline import Strategy
from simulator.step_time.attention_grid import AttentionGrid
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.prices import Prices

if TYPE_CHECKING:
    from simulator.step_time.routed_experts import Routed

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class AttentionSide:
    """The attention cluster; ``grids`` has one attention table for each window of the model.

    ``inside`` are the layers whose time those tables include already.
    """

    cluster: Cluster
    prices: Prices
    grids: Sequence[AttentionGrid]
    inside: Sequence[str] = ()

    @property
    def schedulers(self) -> int:
        """Ranks with a batch of their own."""
        return self.cluster.replicas * self.cluster.engine.data_parallel_size


@dataclass(slots=True)
class FFNSide:
    """An FFN cluster, the links to and from it, and its part of the experts.

    ``experts`` is how many it holds, ``part (experts of the model,)`` what part of each one's
    tokens it takes, and ``share`` what part of all token-expert pairs.
    """

    cluster: Cluster
    prices: Prices
    to: Link
    back: Link
    experts: int = 0
    share: float = 1.0
    part: Floats | None = None

    @property
    def ranks(self) -> int:
        """Ranks of a replica that take tokens of their own: with expert parallelism, all."""
        engine = self.cluster.engine
        return engine.data_parallel_size * (
            engine.tensor_parallel_size if engine.enable_expert_parallel else 1
        )

    @property
    def groups(self) -> int:
        """The same of all replicas, over which tokens spread evenly."""
        return self.cluster.replicas * self.ranks

    @property
    def ports(self) -> int:
        """Devices, each with a port; those of a tensor-parallel group share what it gets."""
        engine = self.cluster.engine
        return self.cluster.replicas * engine.data_parallel_size * engine.tensor_parallel_size


@dataclass(slots=True)
class Split:
    """A pipelined deployment: what ``attention_ffn_step_time`` prices."""

    model: ModelSpec
    attention: AttentionSide
    ffn: Sequence[FFNSide]
    strategy: Strategy
    micro_batches: tuple[int, int]  # the least and the most; the best of them in each step
    one_device: bool = False
    loads: ExpertLoads | None = None  # drawn ones; None: every expert gets the same
    routed: dict[str, Routed] = field(default_factory=dict)  # by FFN cluster, once priced
