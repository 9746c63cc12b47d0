"""Replicas of one engine, as a simulation drives them: compiled, or the plain reference."""

from __future__ import annotations

from simulator.demand import Demand
from simulator.fleet.base import Finish, Fleet
from simulator.fleet.compiled import CompiledFleet
from simulator.fleet.plain import PlainFleet
from simulator.records import Recorder
from simulator.step_time.base import StepTimeModel
from simulator.step_time.compiled import CompiledStepTime


def make_fleet(
    demand: Demand,
    replicas: int,
    model: StepTimeModel,
    recorder: Recorder | None = None,
    *,
    loads_late: bool = False,
) -> CompiledFleet | PlainFleet:
    """Engines for ``demand``: compiled, but for what has no compiled form."""
    if demand.config.windows == (None,) and isinstance(model, CompiledStepTime):
        return CompiledFleet(demand, replicas, model, recorder, loads_late=loads_late)
    return PlainFleet(demand, replicas, model, recorder, loads_late=loads_late)


__all__ = ["CompiledFleet", "Finish", "Fleet", "PlainFleet", "make_fleet"]
