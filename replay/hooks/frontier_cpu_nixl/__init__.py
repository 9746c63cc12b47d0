"""NIXL beside vLLM on a CPU: it leaves the cores to the model. Records nothing.

As shipped, vLLM's NixlConnector (0.32.0) binds its thread to the last core of each memory node;
in an engine of one process that thread runs the model, so that all engines of a host share one
core. And NIXL's progress thread (1.5.1), which inherits the binding, polls without a pause: it
doubled the time of a prefill. This ``vllm.general_plugins`` entry point leaves threads
where the kernel puts them, and has the progress thread sleep until UCX has an event for it. It
changes nothing on another platform.
"""

from __future__ import annotations


def register() -> None:
    """Patch vLLM's CPU platform and how vLLM finds NIXL, once a process."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from frontier_cpu_nixl.patches import patch

        patch()
