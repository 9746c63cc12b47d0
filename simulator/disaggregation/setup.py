"""A disaggregated simulation from a workload and two engines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from simulator.demand import Demand
from simulator.fleet import make_fleet
from simulator.records import Recorder
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.request import Remote
from simulator.stage import Stage
from simulator.step_time.base import StepTimeModel
from traces.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Side:
    """One cluster: its name, schedulers, their settings, step times and router.

    ``loads_late``: see ``Replica``.
    """

    name: str
    schedulers: int
    config: SchedulerConfig
    model: StepTimeModel
    router: str
    loads_late: bool = False

    def stage(self, demand: Demand, recorder: Recorder | None = None) -> Stage:
        """Its replicas, to serve ``demand``."""
        fleet = make_fleet(
            demand, self.schedulers, self.model, recorder, loads_late=self.loads_late
        )
        return Stage(demand, self.router, fleet)


def demands(
    requests: pa.Table,
    prefill: Side,
    decode: Side,
    hash_block_tokens: int | None = None,
    *,
    skip_decode: bool = False,
) -> tuple[Demand, Demand]:
    """What is asked of either side: one token of prefill, all of them of decode.

    With ``skip_decode`` a request for one token is prefill's alone. Raises ConfigError for a
    request that one of the sides can never run.
    """
    last = _demand(requests, decode, hash_block_tokens, Remote.TO_LOAD)
    outputs = requests["output_tokens"].to_numpy()
    decodes = (outputs > 1) | (not skip_decode)
    place = requests.column_names.index("output_tokens")
    single = requests.set_column(place, "output_tokens", pa.array(np.ones_like(outputs)))
    remote = np.where(decodes, int(Remote.TO_KEEP), int(Remote.NONE))
    return _demand(single, prefill, hash_block_tokens, remote), last


def _demand(
    requests: pa.Table, side: Side, hash_block_tokens: int | None, remote: np.ndarray | Remote
) -> Demand:
    try:
        return Demand(requests, side.config, hash_block_tokens, remote=remote)
    except ConfigError as error:
        raise ConfigError(f"clusters[{side.name}]: {error}") from None
