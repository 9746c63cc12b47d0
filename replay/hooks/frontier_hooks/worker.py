"""The class for ``--worker-cls``: vLLM's own worker, its forward passes timed.

Untested, for want of a GPU: every branch taken when ``device`` is not a CPU.
"""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from frontier_hooks.describe import replica_of
from frontier_hooks.forward import ForwardRecorder
from frontier_hooks.kernels import KernelProfiler, wanted
from frontier_hooks.recorder import STEP_ATTRIBUTE
from frontier_hooks.spool import spool_directory
from frontier_hooks.transfers import record_transfers

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
elif current_platform.is_xpu():
    from vllm.v1.worker.xpu_worker import XPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker


class CaptureWorker(_Worker):  # type: ignore[misc]
    """Times execute_model and sample_tokens of real and dummy batches, counts expert tokens."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # makes the model runner report the size a batch was padded to
        vllm_config.observability_config.cudagraph_metrics = True
        super().__init__(vllm_config, *args, **kwargs)
        self.frontier: ForwardRecorder | None = None
        self.frontier_kernels: KernelProfiler | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        loaded = super().load_model(*args, **kwargs)
        recorder = ForwardRecorder(
            spool_directory(), replica_of(self.vllm_config), self.rank,
            self.vllm_config, self.model_runner.get_model(), self.device,
        )  # fmt: skip
        self.frontier = recorder if recorder.needed else None
        if wanted() and self.rank == 0:
            self.frontier_kernels = KernelProfiler(
                spool_directory(), replica_of(self.vllm_config), self.model_runner, self.device
            )
        return loaded

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        done = super().initialize_from_config(*args, **kwargs)
        record_transfers(spool_directory(), replica_of(self.vllm_config), self.rank)
        return done

    def execute_model(self, scheduler_output: Any) -> Any:
        step = getattr(scheduler_output, STEP_ATTRIBUTE, None)
        if self.frontier is None or step is None:  # nothing to run, or another rank's to tell
            return super().execute_model(scheduler_output)
        if self.frontier_kernels is not None:
            self.frontier_kernels.begin(step, scheduler_output.num_scheduled_tokens)
        self.frontier.begin(step)
        output = super().execute_model(scheduler_output)
        if output is None:
            self.frontier.pause()  # sample_tokens is still to come
        else:
            self._frontier_end()
        return output

    def _frontier_end(self) -> None:
        if self.frontier is not None:
            self.frontier.end()
        if self.frontier_kernels is not None:
            self.frontier_kernels.end()

    def sample_tokens(self, grammar_output: Any) -> Any:
        if self.frontier is None or not self.frontier.resume():
            return super().sample_tokens(grammar_output)
        output = super().sample_tokens(grammar_output)
        self._frontier_end()
        return output

    def execute_dummy_batch(self) -> None:
        if self.frontier is None:
            super().execute_dummy_batch()
            return
        start_s = self.frontier.begin_dummy()
        super().execute_dummy_batch()
        self.frontier.end_dummy(start_s)

    def shutdown(self) -> None:
        if self.frontier is not None:
            self.frontier.flush(wait=True)
        super().shutdown()
