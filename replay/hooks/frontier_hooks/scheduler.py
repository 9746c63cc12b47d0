"""The class for ``--scheduler-cls``: vLLM's own scheduler, recorded.

Works for the synchronous and the asynchronous scheduler. Two schedulers that vLLM picks by
itself when no class is named (diffusion models) are not among them.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from frontier_hooks.describe import describe, model_config, replica_of
from frontier_hooks.recorder import Recorder
from frontier_hooks.spool import Stream, hash_key, spool_directory


class _Recorded(Scheduler):  # type: ignore[misc]
    """Put before a scheduler class: the same decisions, each written down."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        directory, replica = spool_directory(), replica_of(self.vllm_config)
        Stream(directory, f"model.{replica}").write(model_config(self.vllm_config))
        Stream(directory, f"engine.{replica}").write(describe(self))
        self.frontier = Recorder(self, directory, replica, self.block_size, hash_key())

    def add_request(self, request: Any) -> None:
        queued_s, new = time.monotonic(), request.request_id not in self.requests
        super().add_request(request)
        if new:
            self.frontier.added(request, queued_s)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        start_s = time.monotonic()
        output = super().schedule(*args, **kwargs)
        self.frontier.scheduled(start_s, output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        self.frontier.updating()
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        end_s = time.monotonic()
        self.frontier.updated(scheduler_output, model_runner_output, outputs, end_s)
        return outputs

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        finished = super().finish_requests(request_ids, finished_status)
        self.frontier.swept(request_ids)
        return finished


class RecordedScheduler(_Recorded):
    """vLLM's synchronous scheduler, recorded."""


class RecordedAsyncScheduler(_Recorded, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler, recorded."""


class CaptureScheduler:
    """Stands in for the class vLLM would have picked; building it gives a recorded one."""

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        asynchronous = vllm_config.scheduler_config.async_scheduling
        recorded = RecordedAsyncScheduler if asynchronous else RecordedScheduler
        return recorded(vllm_config, *args, **kwargs)
