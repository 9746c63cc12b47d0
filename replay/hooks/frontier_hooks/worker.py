"""The class for ``--worker-cls``: vLLM's own worker, its forward passes timed.

Untested, for want of a GPU: every branch taken when ``device`` is not a CPU.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.platforms import current_platform

from frontier_hooks.describe import replica_of
from frontier_hooks.forward import ForwardRecorder
from frontier_hooks.recorder import STEP_ATTRIBUTE
from frontier_hooks.spool import spool_directory

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
elif current_platform.is_xpu():
    from vllm.v1.worker.xpu_worker import XPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker


class CaptureWorker(_Worker):  # type: ignore[misc]
    """Times execute_model and sample_tokens of real and dummy batches, counts expert tokens.

    Rank 0 of the engine writes the times; the first tensor-parallel rank of each pipeline
    stage writes the experts of its layers. Spans of the other ranks are not recorded.
    """

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        # makes the model runner report the size a batch was padded to
        vllm_config.observability_config.cudagraph_metrics = True
        super().__init__(vllm_config, *args, **kwargs)
        self.frontier: ForwardRecorder | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        loaded = super().load_model(*args, **kwargs)
        parallel = self.vllm_config.parallel_config
        stage, tensor_rank = divmod(self.rank, parallel.tensor_parallel_size)
        if tensor_rank == 0:
            replica = replica_of(self.vllm_config)
            model = self.model_runner.get_model()
            self.frontier = ForwardRecorder(spool_directory(), replica, stage, model, self.device)
        return loaded

    def execute_model(self, scheduler_output: Any) -> Any:
        step = getattr(scheduler_output, STEP_ATTRIBUTE, None)
        if self.frontier is None or step is None:  # nothing to run, or another rank's to tell
            return super().execute_model(scheduler_output)
        self.frontier.begin(step)
        output = super().execute_model(scheduler_output)
        if output is None:
            self.frontier.pause()  # sample_tokens is still to come
        else:
            self.frontier.end()
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        if self.frontier is None or not self.frontier.resume():
            return super().sample_tokens(grammar_output)
        output = super().sample_tokens(grammar_output)
        self.frontier.end()
        return output

    def execute_dummy_batch(self) -> None:
        start_s = time.monotonic()
        super().execute_dummy_batch()
        if self.frontier is not None:
            self.frontier.dummy(start_s, time.monotonic())

    def shutdown(self) -> None:
        if self.frontier is not None:
            self.frontier.flush(wait=True)
        super().shutdown()
