"""The reference engines as a fleet: a heap of events, one at a time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from simulator.clock import NEVER, STEP_END, WAKE
from simulator.demand import Demand
from simulator.fleet.base import MANY, Finish, Load
from simulator.lockstep import LockStep
from simulator.records import Recorder
from simulator.replica import Rank, Replica, Step
from simulator.scheduling.reference import Scheduler
from simulator.scheduling.request import Remote, Request
from simulator.step_time.base import StepTimeModel


class PlainFleet:
    """``replicas`` reference engines serving ``demand``; see ``Fleet``.

    ``models`` has the step times of each replica, if they are not all ``model``'s.
    """

    def __init__(
        self,
        demand: Demand,
        replicas: int,
        model: StepTimeModel,
        recorder: Recorder | None = None,
        *,
        loads_late: bool = False,
        models: Sequence[StepTimeModel] | None = None,
    ) -> None:
        self._demand = demand
        self._recorder = recorder
        self._logged_steps = self._logged_rows = 0
        on_step = None if recorder is None else self._log
        self.replicas = [
            Rank(
                i,
                Scheduler(demand.config),
                model.frontend_ps,
                self._finish,
                on_step,
                self._load,
                loads_late=loads_late,
            )
            for i in range(replicas)
        ]
        self.loads = self.replicas
        ranks = demand.config.lock_step_ranks
        self._engines: list[Replica | LockStep] = [
            Replica(rank, models[rank.index] if models else model) for rank in self.replicas
        ]
        if ranks > 1:
            firsts = range(0, replicas, ranks)
            self._engines = [LockStep(self.replicas[i : i + ranks], model) for i in firsts]
        self._engine_of = {rank.index: e for e in self._engines for rank in e.ranks}
        self.next_ps = NEVER
        self._heap: list[tuple[int, int, int]] = []  # (ps, kind, replica): an entry may be stale
        self._done: list[Finish] = []
        self.begun: list[Load] = []
        self._present: dict[int, Request] = {}

    def arrive(self, request: int, replica: int, at_ps: int) -> None:
        """See ``Fleet``."""
        made = self._demand.make(request)
        self._present[request] = made
        engine = self._engine_of[replica]
        engine.arrive(made, replica, at_ps)
        self._push(engine)
        self._find_next()

    def run(self, limit_ps: int, *, events: int = MANY, in_order: bool = False) -> Sequence[Finish]:
        """See ``Fleet``."""
        self._done, self.begun = [], []
        while self.next_ps < limit_ps and events:
            if in_order and (self._done or self.begun):
                break
            engine = self._engine_of[heapq.heappop(self._heap)[2]]
            engine.advance()
            events -= 1
            self._push(engine)
            self._find_next()
        return self._done

    def notify(self, request: int, replica: int, at_ps: int) -> None:
        """See ``Fleet``."""
        made = self._present[request]
        engine = self._engine_of[replica]
        engine.notify(made, replica, at_ps)
        if made.remote == Remote.NONE:
            del self._present[request]
        self._push(engine)
        self._find_next()

    def close(self) -> None:
        """See ``Fleet``."""
        for request in self._present.values():
            self._demand.settle(request)
        if self._recorder is not None:
            self._flush()

    def check(self) -> None:
        """Raise InvariantError unless all KV blocks have come back."""
        for replica in self.replicas:
            replica.scheduler.check([])

    def describe(self) -> str:
        """See ``Fleet``."""
        return "; ".join(
            f"replica {r.index}: {r.running} running, {r.waiting} waiting"
            for r in self.replicas
            if r.unfinished
        )

    def _push(self, engine: Replica | LockStep) -> None:
        if engine.next_ps != NEVER:
            kind = STEP_END if engine.ending else WAKE
            heapq.heappush(self._heap, (engine.next_ps, kind, engine.index))

    def _find_next(self) -> None:
        while self._heap:
            ps, kind, index = self._heap[0]
            engine = self._engine_of[index]
            if engine.next_ps == ps and engine.ending == (kind == STEP_END):
                self.next_ps = ps
                return
            heapq.heappop(self._heap)
        self.next_ps = NEVER

    def _finish(self, replica: Rank, request: Request, now_ps: int) -> None:
        self._demand.settle(request)
        if request.remote != Remote.KEPT:
            del self._present[request.index]
        self._done.append(Finish(request.index, replica.index, now_ps))

    def _load(self, replica: Rank, request: Request, at_ps: int) -> None:
        blocks = sum(map(len, request.blocks)) - sum(request.cached_blocks)
        self.begun.append(Load(request.index, replica.index, at_ps, blocks))

    def _log(self, replica: Rank, step: Step) -> None:
        recorder, batch = self._recorder, step.batch
        assert recorder is not None
        if recorder.is_full(self._logged_steps, self._logged_rows):
            self._flush()
        if len(recorder.steps):
            log = recorder.steps[self._logged_steps]
            prefill = sum(r.tokens for r in batch.rows if r.computed < r.request.prompt)
            for name, value in {
                "replica": replica.index, "step": replica.steps, "start_ps": step.start_ps,
                "end_ps": step.end_ps, "forward_ps": step.forward_ps, "tokens": batch.tokens,
                "prefill_tokens": prefill, "running": step.running, "waiting": step.waiting,
                "free_blocks": step.free_blocks, "preempted": len(batch.preempted),
                "dummy": step.dummy,
            }.items():  # fmt: skip
                log[name] = value
            self._logged_steps += 1
        if len(recorder.rows):
            for row in batch.rows:
                recorder.rows[self._logged_rows] = (
                    replica.index, replica.steps, row.request.index, row.tokens, row.computed,
                    row.emits, 0,
                )  # fmt: skip
                self._logged_rows += 1

    def _flush(self) -> None:
        assert self._recorder is not None
        self._recorder.flush(self._logged_steps, self._logged_rows)
        self._logged_steps = self._logged_rows = 0
