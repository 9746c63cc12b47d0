"""What the processes write down while they run."""

from __future__ import annotations

from dataclasses import dataclass, field

from replay.af_testbed.disturbance import Disturbance

ROW_BYTES = 4  # fp32


@dataclass(slots=True)
class Stamp:
    """A stage as it ran, nanoseconds of the monotonic clock; ``layer`` -1 closes the step."""

    step: int
    layer: int
    micro_batch: int
    stage: str
    start_ns: int
    end_ns: int
    bytes: int = 0


@dataclass(slots=True)
class Record:
    """What a rank saw of a run."""

    stamps: list[Stamp] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)  # start and end, ns
    disturbances: list[Disturbance] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)  # by request
    prompts: list[list[int]] = field(default_factory=list)
    experts: list[tuple[int, int, int, list[int]]] = field(default_factory=list)
