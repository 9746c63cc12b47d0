"""The compiled scheduler behind the reference's interface: one engine, one step at a time.

For tests, and for whoever drives a scheduler by times of its own; a simulation runs whole
fleets (``fleet/compiled.py``). Sliding windows have no compiled form: there it is the
reference itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from simulator.demand import new_records
from simulator.engine.build import load
from simulator.engine.entries import (
    abort_request,
    add_request,
    end_step,
    notify_request,
    plan_step,
    settle_all,
)  # fmt: skip
from simulator.engine.layout import Shared
from simulator.engine.memory import Memory, Records
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.reference import Batch, Row, Scheduler
from simulator.scheduling.request import Request, Status
from simulator.step_time.base import BatchShape
from simulator.step_time.compiled import CompiledStepTime


class FastScheduler(Scheduler):
    """Drop-in for ``Scheduler``; requests, told apart by ``index``, live in records once added.

    Of a ``Request`` only ``cached_tokens`` and ``status`` are kept up to date. ``shape`` is
    the last step's, as the step-time model gets it.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._is_compiled = config.windows == (None,)
        if not self._is_compiled:
            return
        self._model = CompiledStepTime([])
        self._memory = Memory(config, 1, contents=0, model=self._model.address)
        self._replica: Records = self._memory.replicas[0]
        self._requests: dict[int, Request] = {}
        self._records = new_records(0)
        self._shared: list[Records] = []
        self._contents: dict[int, int] = {}  # block hash -> content
        self.waiting = _Waiting(self._replica)  # type: ignore[assignment]
        self.kv = _Blocks(self._replica, config.num_gpu_blocks)  # type: ignore[assignment]
        self._add, self._abort = load(add_request), load(abort_request)
        self._plan, self._end, self._settle = load(plan_step), load(end_step), load(settle_all)
        self._notify = load(notify_request)

    @property
    def quiet_steps(self) -> int:
        """Steps taken without a look at their rows."""
        return int(self._replica["quiet_steps"]) if self._is_compiled else 0

    @property
    def shape(self) -> BatchShape:
        """Shape of the last step."""
        return self._model.last_shape()

    def add(self, request: Request) -> None:
        if not self._is_compiled:
            super().add(request)
            return
        self._keep(request)
        self._add(self._memory.address, request.index)

    def schedule(self) -> Batch:
        if not self._is_compiled:
            return super().schedule()
        slot = self._plan(self._memory.address)
        step = self._memory.steps[0, slot]
        lost = self._memory.preempted[0, slot, : step["preempted"]]["value"]
        batch = Batch(preempted=[self._requests[i] for i in lost], tokens=int(step["tokens"]))
        begun = self._memory.world["begun"][0]
        batch.loads = [self._requests[i] for i in self._memory.begun[:begun]["request"]]
        self._memory.world["begun"] = 0
        for request in batch.loads:
            request.cached_tokens = int(self._records["cached_tokens"][request.index])
        self._look()
        if step["quiet"]:
            ahead = int(self._replica["scheduled"]) - 1
            for request in self.running:
                computed = int(self._records["computed"][request.index]) + ahead
                batch.rows.append(Row(request, computed, 1, emits=True))
            return batch
        for _, _, i, tokens, computed, emits, _ in self._memory.rows[
            0, slot, : step["rows"]
        ].tolist():
            batch.rows.append(Row(self._requests[i], computed, tokens, emits=bool(emits)))
            self._requests[i].cached_tokens = int(self._records["cached_tokens"][i])
        return batch

    def update(self, batch: Batch) -> list[Request]:
        if not self._is_compiled:
            return super().update(batch)
        quiet = self._memory.steps[0, self._replica["first_slot"]]["quiet"]
        self._end(self._memory.address, 0)
        self._memory.world["finished"] = 0
        self._look()
        events = []
        for row in () if quiet else batch.rows:
            record = self._records[row.request.index]
            row.request.status = Status(int(record["status"]))
            if row.emits and (record["output"] == 1 or row.request.status == Status.FINISHED):
                events.append(row.request)
        return events

    def abort(self, request: Request) -> None:
        if not self._is_compiled:
            super().abort(request)
            return
        self._abort(self._memory.address, request.index)
        request.status = Status.ABORTED
        self._look()

    def loaded(self, request: Request) -> None:
        if not self._is_compiled:
            super().loaded(request)
            return
        self._notify(self._memory.address, request.index)
        self._look()

    def release(self, request: Request) -> None:
        self.loaded(request) if self._is_compiled else super().release(request)

    def check(self, requests: Iterable[Request]) -> None:
        """Raise InvariantError unless the KV blocks of all requests add up."""
        if not self._is_compiled:
            super().check(requests)
            return
        self._settle(self._memory.address, 1)
        self._memory.check(0, self._records)

    def _look(self) -> None:
        """Read what changed."""
        seats = self._memory.seats[0, : self._replica["running"]]["value"]
        self.running = [self._requests[i] for i in seats.tolist()]
        self.capped_chunks = int(self._replica["capped_chunks"])

    def _keep(self, request: Request) -> None:
        """Give a request its record."""
        i = request.index
        self._requests[i] = request
        if i >= len(self._records):
            self._records = np.concatenate([self._records, new_records(i + 64)])
            self._memory.point("requests_at", self._records)
        record = self._records[i]
        record["prompt"], record["max_tokens"] = request.prompt, request.max_tokens
        record["priority"], record["arrival_ps"] = request.priority, request.arrival_ps
        record["remote"] = int(request.remote)
        ranked = sorted(self._requests.values(), key=lambda r: (r.name, r.index))
        for rank, other in enumerate(ranked):
            self._records["rank"][other.index] = rank
        hashes = request.hashes[: request.shared]
        shared = np.zeros(len(hashes), Shared.dtype)
        shared["code"] = [self._contents.setdefault(h, len(self._contents)) for h in hashes]
        record["shared"], record["shared_at"] = len(hashes), shared.ctypes.data
        self._shared.append(shared)
        self._memory.make_room(len(self._contents))


class _Waiting:
    """Stands for the waiting queue, of which only the length is known."""

    def __init__(self, replica: Records) -> None:
        self._replica = replica

    def __len__(self) -> int:
        return int(self._replica["waiting"])


class _Blocks:
    """Stands for the KV memory."""

    def __init__(self, replica: Records, blocks: int) -> None:
        self._replica = replica
        self.blocks = blocks

    @property
    def free_blocks(self) -> int:
        return int(self._replica["free_blocks"])

    @property
    def evictions(self) -> int:
        return int(self._replica["evictions"])
