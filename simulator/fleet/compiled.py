"""The compiled engines as a fleet."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.clock import NEVER
from simulator.demand import Demand
from simulator.engine.build import load
from simulator.engine.entries import arrive, report, run, settle_all
from simulator.engine.layout import (
    CORRUPT,
    OK,
    PREEMPTED_FOR_EVER,
    Replica,
    World,
)  # fmt: skip
from simulator.engine.memory import Memory, ints_of, place_of
from simulator.fleet.base import MANY, Finish, Load
from simulator.records import Recorder
from simulator.scheduling.request import MAX_PREEMPTIONS
from simulator.step_time.compiled import CompiledStepTime
from traces.errors import ConfigError, InvariantError

FINISHED = place_of(World, "finished")
BEGUN = place_of(World, "begun")
ERROR = place_of(World, "error")


class CompiledFleet:
    """``replicas`` compiled engines serving ``demand``, whose records they write.

    ``recorder``, where given, is fed with steps; engines with sliding windows are left to
    ``PlainFleet``.
    """

    def __init__(
        self,
        demand: Demand,
        replicas: int,
        model: CompiledStepTime,
        recorder: Recorder | None = None,
        *,
        loads_late: bool = False,
    ) -> None:
        self._demand = demand
        self._model = model  # owns memory
        self._recorder = recorder
        self.memory = Memory(
            demand.config,
            replicas,
            contents=demand.prefixes.contents,
            model=model.address,
            frontend_ps=model.frontend_ps,
            loads_late=loads_late,
        )
        self.memory.point("requests_at", demand.records)
        if recorder is not None:
            self.memory.point("steps_at", recorder.steps, "steps_room")
            self.memory.point("rows_at", recorder.rows, "rows_room")
        self.next_ps = NEVER
        self.begun: Sequence[Load] = ()
        self.loads = [_Load(self.memory, e) for e in range(replicas)]
        self._world = ints_of(self.memory.world)
        self._arrive, self._report, self._run = load(arrive), load(report), load(run)

    def arrive(self, request: int, replica: int, at_ps: int) -> None:
        """See ``Fleet``."""
        self.next_ps = self._arrive(self.memory.address, replica, request, at_ps)

    def run(self, limit_ps: int, *, events: int = MANY, in_order: bool = False) -> Sequence[Finish]:
        """See ``Fleet``."""
        world = self._world
        self.next_ps = self._run(self.memory.address, limit_ps, events, in_order)
        if world[ERROR] != OK:
            raise self._error()
        if self._recorder is not None:
            self._flush(full=False)
        self.begun = ()
        if world[BEGUN]:
            self.begun = [Load(*b) for b in self.memory.begun[: world[BEGUN]].tolist()]
            world[BEGUN] = 0
        if not world[FINISHED]:
            return ()
        done: list[Finish] = self.memory.finished[: world[FINISHED]].tolist()
        world[FINISHED] = 0
        return done

    def notify(self, request: int, replica: int, at_ps: int) -> None:
        """See ``Fleet``."""
        self.next_ps = self._report(self.memory.address, replica, request, at_ps)

    def close(self) -> None:
        """See ``Fleet``."""
        load(settle_all)(self.memory.address, len(self.loads))
        if self._recorder is not None:
            self._flush(full=True)

    def check(self) -> None:
        """Raise InvariantError unless all KV blocks have come back."""
        for replica in self.memory.replicas:
            if replica["free_blocks"] != self._demand.config.num_gpu_blocks - 1:
                raise InvariantError(
                    f"replica {replica['index']}: KV blocks leaked: {replica['free_blocks']} free "
                    f"of {self._demand.config.num_gpu_blocks - 1} when all requests had finished"
                )

    def describe(self) -> str:
        """See ``Fleet``."""
        return "; ".join(
            f"replica {r['index']}: {r['running']} running, {r['waiting']} waiting"
            for r in self.memory.replicas
            if r["unfinished"]
        )

    def steps(self) -> tuple[int, int]:
        """Steps so far, and how many of them were quiet."""
        replicas = self.memory.replicas
        return int(replicas["steps"].sum()), int(replicas["quiet_steps"].sum())

    def _flush(self, *, full: bool) -> None:
        assert self._recorder is not None
        steps, rows = (int(self.memory.world[name][0]) for name in ("steps", "rows"))
        if full or self._recorder.is_full(steps, rows):
            self._recorder.flush(steps, rows)
            self.memory.world["steps"] = self.memory.world["rows"] = 0

    def _error(self) -> Exception:
        world = self.memory.world[0]
        error, replica, i = (int(world[f"error{part}"]) for part in ("", "_replica", "_request"))
        blocks = self._demand.config.num_gpu_blocks - 1
        if error == PREEMPTED_FOR_EVER:
            return ConfigError(
                f"request {self._demand.name(i)!r} was preempted {MAX_PREEMPTIONS} times: with "
                f"{blocks} KV blocks requests evict each other for ever"
            )
        if error == CORRUPT:
            return InvariantError(f"KV blocks do not add up: {self.describe()}")
        free = self.memory.replicas["free_blocks"][replica]
        return InvariantError(
            f"replica {replica} can schedule nothing: {self.describe()}; {free} free blocks"
        )


class _Load:
    """A replica as a router sees it."""

    def __init__(self, memory: Memory, replica: int) -> None:
        self._numbers = ints_of(memory.replicas[replica : replica + 1])
        self._blocks = int(memory.replicas["free_blocks"][replica])

    @property
    def unfinished(self) -> int:
        return self._numbers[_UNFINISHED]

    @property
    def waiting(self) -> int:
        return self._numbers[_WAITING]

    @property
    def running(self) -> int:
        return self._numbers[_RUNNING]

    @property
    def kv_usage(self) -> float:
        return 1.0 - self._numbers[_FREE] / self._blocks


_UNFINISHED, _WAITING, _RUNNING, _FREE = (
    place_of(Replica, name) for name in ("unfinished", "waiting", "running", "free_blocks")
)
