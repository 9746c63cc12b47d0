"""Forward passes as rows: how long they took, their collectives, their tokens' experts.

On a CPU the host's clock is the forward pass's. On a GPU the host runs ahead of it, so
events on its stream take the time and expert counts stay on the device until they pass;
that half is untested.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import Any

from frontier_hooks.collectives import CollectiveTimer, can_time_collectives
from frontier_hooks.experts import ExpertCounter, routers
from frontier_hooks.spool import Stream

DUMMY = -1  # the step of a batch without requests


class ForwardRecorder:
    """What one worker has to tell of its forward passes; ``rank`` is that in its replica.

    ``forward.<replica>`` is rank 0's. ``experts.<replica>.<rank>`` is written by the first
    tensor-parallel rank of a pipeline stage, which routes the same tokens as the others, or
    by all of them where they split the tokens (sequence-parallel MoE). ``spans`` are every
    rank's. A pass is begin, pause, resume, end: execute_model and sample_tokens are two
    calls, and what the engine does between them is not the worker's time.
    """

    def __init__(
        self, directory: Path, replica: int, rank: int, vllm_config: Any, model: Any, device: Any
    ) -> None:
        parallel = vllm_config.parallel_config
        self._times = Stream(directory, f"forward.{replica}") if rank == 0 else None
        first = rank % parallel.tensor_parallel_size == 0
        split = getattr(parallel, "use_sequence_parallel_moe", False)
        found = routers(model) if first or split else []
        self._counter = ExpertCounter(found, device) if found else None
        if self._counter:
            self._experts = Stream(directory, f"experts.{replica}.{rank}")
        self._collectives = None
        if can_time_collectives(vllm_config, device):
            self._collectives = CollectiveTimer(directory, replica, rank, model)
        self._on_device = str(device).split(":")[0] != "cpu"
        self._open: deque[tuple[dict[str, Any], Any, Any]] = deque()  # passes on the device
        self._row: dict[str, Any] | None = None

    @property
    def needed(self) -> bool:
        """Whether this worker has anything to tell."""
        return any((self._times, self._counter, self._collectives))

    def begin(self, step: int) -> None:
        """Step ``step``'s batch is about to run."""
        self.flush()
        if self._counter:
            self._counter.reset()
        if self._collectives:
            self._collectives.begin()
        self._row = {"step": step, "dummy": False, "forward_s": 0.0, "thread_s": 0.0}
        self._first_event = _device_event() if self._on_device else None
        self._row["start_s"] = time.monotonic()
        self._mark()

    def pause(self) -> None:
        """execute_model has returned, sampling is still to come."""
        self._add()

    def resume(self) -> bool:
        """sample_tokens is entered; False if it belongs to no recorded pass."""
        if self._row is None:
            return False
        self._mark()
        return True

    def end(self) -> None:
        """The pass is over (on a GPU: queued)."""
        self._add()
        row, self._row = self._row, None
        counts = self._counter.take() if self._counter else None
        if row is None:
            return
        if self._collectives:
            self._collectives.end(row["step"])
        if not self._on_device:
            self._write(row, counts)
            return
        self._open.append((row, counts, (self._first_event, _device_event())))

    def begin_dummy(self) -> float:
        """A batch without requests is about to run; returns the time (monotonic, seconds)."""
        if self._collectives:
            self._collectives.begin()
        return time.monotonic()

    def end_dummy(self, start_s: float) -> None:
        """The batch without requests ran, to stay in step with the other ranks."""
        end_s = time.monotonic()
        if self._collectives:
            self._collectives.end(DUMMY)
        self._write(
            {
                "step": DUMMY,
                "dummy": True,
                "forward_s": end_s - start_s,
                "thread_s": 0.0,
                "start_s": start_s,
            },
            None,
        )

    def flush(self, wait: bool = False) -> None:
        """Write the passes the device has finished; with ``wait`` all of them."""
        while self._open:
            row, counts, (first, last) = self._open[0]
            if wait:
                last.synchronize()
            elif not last.query():
                return
            self._open.popleft()
            row["forward_s"] = first.elapsed_time(last) / 1e3  # CUDA events tell milliseconds
            self._write(row, counts)

    def _mark(self) -> None:
        self._wall_s, self._thread_s = time.monotonic(), time.thread_time()

    def _add(self) -> None:
        if self._row is not None:
            self._row["forward_s"] += time.monotonic() - self._wall_s
            self._row["thread_s"] += time.thread_time() - self._thread_s

    def _write(self, row: dict[str, Any], counts: Any) -> None:
        if self._times:
            self._times.write(row)
        if counts is not None:
            layers = self._counter.layers if self._counter else []
            self._experts.write({"step": row["step"], "layers": layers, "tokens": counts.tolist()})


def _device_event() -> Any:
    import torch

    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
