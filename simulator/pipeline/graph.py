"""A strategy as a max-plus recurrence: when each stage of a step ends, in one compiled pass.

Every piece of work ends at the later of two others' ends plus its own duration: that of the
piece before it on its resource, and that of the data it needs. Data from several lanes are
joined by pieces of no duration. Pieces stand in an order in which each follows what it needs,
so one pass over them (``engine/pipeline.py``) is exact, and no event is scheduled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.engine.build import load
from simulator.engine.entries import last_end
from simulator.engine.layout import Piece
from simulator.engine.layout import Pipeline as Record
from simulator.pipeline.base import DEVICE, STAGES, Stage, Strategy, Work

Picoseconds = npt.NDArray[np.int64]
START = 0  # the piece before all others, which ends at 0


class Lanes(NamedTuple):
    """Ranks that work side by side: of attention, and of the FFN with a link each.

    Attention sends to every FFN rank and the next layer waits for all of them, but for the
    shared expert of its own rank only. With ``one_device`` attention and FFN of a lane are one
    device, which takes them in turn.
    """

    attention: int = 1
    ffn: int = 1
    one_device: bool = False

    def of(self, stage: Stage) -> int:
        """Lanes of a stage."""
        return self.attention if stage in ("attention", "shared") else self.ffn


ONE_EACH = Lanes()


class Span(NamedTuple):
    """A stage of a step as it ran: picoseconds from the step's start."""

    work: Work
    lane: int
    resource: str
    start_ps: int
    end_ps: int
    arrived_ps: int  # at the next stage


class Placed(NamedTuple):
    """Work as pieces: its own, that by which its data have arrived, those it needs."""

    work: Work
    lane: int
    resource: str
    piece: int
    arrived: int
    needs: list[int]


class Pipeline:
    """A step of ``layers`` layers in ``micro_batches`` micro-batches under a strategy.

    ``kinds`` gives each layer's line in the durations, and a last one for what closes the
    step; by default every layer has its own. ``durations``, int64 picoseconds of shape
    ``(stages, kinds, micro_batches, lanes)`` with ``STAGES`` in order, is the caller's to
    fill: ``evaluate`` reads it in place. ``latency_ps`` of a stage is how long after it its data
    arrive, by lane; its resource is free meanwhile.
    """

    def __init__(
        self,
        strategy: Strategy,
        layers: int,
        micro_batches: int,
        lanes: Lanes = ONE_EACH,
        kinds: Sequence[int] | None = None,
        latency_ps: Mapping[Stage, Sequence[int]] | None = None,
    ) -> None:
        self.strategy, self.lanes = strategy, lanes
        self.layers, self.micro_batches = layers, micro_batches
        self.kinds = tuple(range(layers + 1)) if kinds is None else tuple(kinds)
        shape = (len(STAGES), max(self.kinds) + 1, micro_batches, max(lanes[:2]))
        self.latency_ps = {stage: tuple(late) for stage, late in (latency_ps or {}).items()}
        delays = {
            (stage, lane): ps
            for stage, late in self.latency_ps.items()
            for lane, ps in enumerate(late)
            if ps
        }
        filled = int(np.prod(shape))
        # behind the durations: none, for joints, and the latencies
        self._costs = np.array([0] * (filled + 1) + list(delays.values()), np.int64)
        self.durations: Picoseconds = self._costs[:filled].reshape(shape)
        self._nothing = filled
        self._delays = {late: filled + 1 + i for i, late in enumerate(delays)}
        self.work: list[Placed] = []
        self._pieces: list[tuple[int, int, int]] = []
        self._does: dict[int, tuple[str, int]] = {}  # resource and lane of a piece of work
        self._build()
        self._array = np.array(self._pieces, np.int32).view(Piece.dtype).reshape(-1)
        self._ends = np.zeros(len(self._pieces) + 1, np.int64)
        self._record = np.zeros(1, Record.dtype)
        self._record["pieces"] = len(self._pieces)
        self._record["kinds"], self._record["lanes"] = shape[1], shape[3]
        for key, array in (
            ("pieces_at", self._array), ("costs_at", self._costs), ("ends_at", self._ends)
        ):  # fmt: skip
            self._record[key] = array.ctypes.data
        self.address: int = self._record.ctypes.data
        self._evaluate = load(last_end)

    def evaluate(self) -> int:
        """Picoseconds from the start of the step to its end, under ``durations``."""
        return self._evaluate(self.address)

    def spans(self) -> list[Span]:
        """What ran when, as last evaluated, in the strategy's order."""
        ends, costs = self._ends.tolist(), self._costs.tolist()
        return [
            Span(
                work=placed.work,
                lane=placed.lane,
                resource=placed.resource,
                start_ps=ends[placed.piece] - costs[self._pieces[placed.piece - 1][2]],
                end_ps=ends[placed.piece],
                arrived_ps=ends[placed.arrived],
            )
            for placed in self.work
        ]

    def _build(self) -> None:
        done: dict[Work, list[int]] = {}  # by lane
        last: dict[tuple[str, int], int] = {}  # of a resource
        for work in self.strategy.order(self.layers, self.micro_batches):
            of_all, of_its_own = self._needs(work)
            gathered = [piece for before in of_all for piece in done[before]]
            whole = self._joined(gathered)  # once for all lanes
            resource, stage = self._resource(work.stage), STAGES.index(work.stage)
            done[work] = []
            for lane in range(self.lanes.of(work.stage)):
                mine = [done[before][lane] for before in of_its_own]
                # what the same resource did before is over anyway when this begins
                fed = [piece for piece in mine if self._does.get(piece) != (resource, lane)]
                cost = np.ravel_multi_index(
                    (stage, self.kinds[work.layer], work.micro_batch, lane), self.durations.shape
                )
                data = self._joined([whole, *fed])
                piece = self._add(last.get((resource, lane), START), data, int(cost))
                last[resource, lane] = arrived = piece
                self._does[piece] = resource, lane
                if (delay := self._delays.get((work.stage, lane))) is not None:
                    arrived = self._add(piece, piece, delay)
                done[work].append(arrived)
                needs = [*gathered, *mine]
                self.work.append(Placed(work, lane, resource, piece, arrived, needs))
        self._joined(list(last.values()))

    def _needs(self, work: Work) -> tuple[list[Work], list[Work]]:
        """The work whose data a piece needs: of all its lanes, and of the piece's own lane."""
        stage, layer, micro_batch = work
        if stage == "attention":
            if not layer:
                return [], []
            beside = [Work("shared", layer - 1, micro_batch)] if self.strategy.shared else []
            return [Work("f2a", layer - 1, micro_batch)], beside
        if stage == "shared":
            return [], [Work("attention", layer, micro_batch)]
        before = [Work(STAGES[STAGES.index(stage) - 1], layer, micro_batch)]
        return (before, []) if stage == "a2f" else ([], before)

    def _resource(self, stage: Stage) -> str:
        if self.lanes.one_device and stage in ("attention", "ffn", "shared"):
            return DEVICE
        return self.strategy.resources[stage]

    def _joined(self, pieces: Sequence[int]) -> int:
        """A piece that ends with the last of ``pieces``; the start, if there are none."""
        joined = START
        for piece in pieces:
            if piece != START:
                joined = piece if joined == START else self._add(joined, piece, self._nothing)
        return joined

    def _add(self, first: int, second: int, cost: int) -> int:
        self._pieces.append((first, second, cost))
        return len(self._pieces)
