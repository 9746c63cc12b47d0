"""What stands in for what is predicted of a prefill/decode pair: handovers, step times, homes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.clock import NEVER
from simulator.disaggregation.connection import Connection
from simulator.disaggregation.simulation import LANDS, PrefillDecode
from simulator.stage import Stage
from simulator.step_time.base import BatchShape, StepTimes
from validation.mixed_clock import MixedClock
from validation.predicting import Predictor
from validation.recorded_steps import Record


@dataclass(frozen=True, slots=True)
class Handover:
    """Picoseconds from prefill's answer to decode's queue, and of the transfer.

    ``landed_ps``: from the answer until decode saw that the KV had come, where that is known.
    """

    queued_ps: int
    moved_ps: int
    landed_ps: int | None = None


class RecordedHandover(PrefillDecode):
    """Two stages between which ``recorded`` handovers take what they took."""

    def __init__(
        self,
        prefill: Stage,
        decode: Stage,
        connection: Connection,
        proxy_ps: int,
        recorded: Mapping[int, Handover],
    ) -> None:
        super().__init__(prefill, decode, connection, proxy_ps=proxy_ps)
        self._recorded = recorded

    def _proxied_ps(self, request: int) -> int:
        if request in self._recorded:
            return max(0, self._recorded[request].queued_ps)
        return super()._proxied_ps(request)

    def _enter(self, request: int, at_ps: int) -> None:
        if request not in self._recorded:
            super()._enter(request, at_ps)
            return
        handover, handovers = self._recorded[request], self.handovers
        end_ps = handovers.start_ps[request] + handover.moved_ps
        if handover.landed_ps is not None:
            end_ps = handovers.finished_ps[request] + handover.landed_ps
        self._push(max(at_ps, end_ps), LANDS, request)


class MixedSteps:
    """Step times of one replica, step after step."""

    frontend_ps = 0  # the fleet's, which has it from the side's model

    def __init__(self, record: Record, model: Predictor, predicted: frozenset[str]) -> None:
        self._clock = MixedClock(record, model, predicted)
        self._steps = 0

    def times(self, shape: BatchShape) -> StepTimes:
        """Times of the next step."""
        self._steps += 1
        return self._clock.times(self._steps - 1, (shape.of_rows(),))

    def coverage(self) -> dict[str, int]:
        """Nothing: what a rung extrapolates is not told."""
        return {}


class FrontendOnly:
    """When a side sees a request, for a fleet whose replicas have step times of their own."""

    def __init__(self, frontend_ps: int) -> None:
        self.frontend_ps = frontend_ps

    def times(self, shape: BatchShape) -> StepTimes:
        """Never asked."""
        raise NotImplementedError

    def coverage(self) -> dict[str, int]:
        """Nothing."""
        return {}


class RecordedRouter:
    """A router that sends each request where it went."""

    look_ps = NEVER

    def __init__(self, homes: Sequence[int]) -> None:
        self._homes = homes

    def observe(self, now_ps: int) -> None:
        """See ``Router``."""

    def choose(self, request: int = 0) -> int:
        """See ``Router``."""
        return self._homes[request]

    def finished(self, replica: int, request: int = 0) -> None:
        """See ``Router``."""
