"""NIXL beside vLLM on a CPU: its progress thread sleeps while nothing moves. Records nothing.

As shipped (1.5.1) the thread polls without a pause. On a GPU that costs a core of many; on a
CPU it inherits the cores that the worker is bound to, and forward passes wait for it: prefills
took 5 s instead of 0.1 s. This ``vllm.general_plugins`` entry point has the thread sleep until
UCX has an event for it. It changes nothing on another platform.
"""

from __future__ import annotations


def register() -> None:
    """Patch how vLLM finds NIXL, once a process."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from frontier_cpu_nixl.patches import patch

        patch()
