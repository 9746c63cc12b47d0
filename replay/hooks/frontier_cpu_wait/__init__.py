"""Processes of a CPU server that sleep while they wait for each other. Records nothing.

vLLM's engine and its worker processes poll shared memory for each other's messages, up to a
second before they sleep. Where they are more than the cores, who polls holds a core that the
one it waits for needs, and so do front end and client: requests arrive seconds late. This
``vllm.general_plugins`` entry point has them sleep at once until the writer's notification,
which vLLM sends with every message. It changes nothing on another platform, and nothing
where every process has a core.
"""

from __future__ import annotations

import os
import time
from functools import wraps
from typing import Any

SLEEP = "FRONTIER_CPU_SLEEP"  # set by an engine for its workers
LOOK_MS = 1  # the notification of a message soon after another one may be dropped


def register() -> None:
    """Have the messages of an engine's workers waited for asleep, once a process."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor

    if SLEEP in os.environ:  # a worker
        sleep_at_once()
    start = MultiprocExecutor._init_executor
    if not hasattr(start, "__wrapped__"):
        MultiprocExecutor._init_executor = _sleeping_if_crowded(start)


def sleep_at_once() -> None:
    """Make idle readers of vLLM's message queues sleep without polling first."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    wait = SpinCondition.wait
    if not hasattr(wait, "__wrapped__"):
        SpinCondition.wait = _asleep(wait)


def _asleep(wait: Any) -> Any:
    @wraps(wait)
    def wait_asleep(self: Any, timeout_ms: int | None = None) -> None:
        if time.monotonic() > self.last_read + self.busy_loop_s:
            wait(self, timeout_ms)  # vLLM sleeps by itself
        elif self.local_notify_socket in dict(self.poller.poll(timeout=LOOK_MS)):
            self.local_notify_socket.recv(copy=False)

    return wait_asleep


def _sleeping_if_crowded(start: Any) -> Any:
    @wraps(start)
    def _init_executor(self: Any) -> None:
        parallel = self.parallel_config
        waiting = parallel.data_parallel_size + parallel.world_size_across_dp
        if waiting >= len(os.sched_getaffinity(0)):  # and a front end
            os.environ[SLEEP] = "1"
            sleep_at_once()
        start(self)

    return _init_executor
