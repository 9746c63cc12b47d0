"""Expert parallelism for vLLM on a CPU, which lacks two pieces of it. Records nothing.

As shipped (0.32.0), the experts of a CPU server with ``--enable-expert-parallel`` take every
rank's expert ids for their own and read past their weights, and data-parallel ranks have no
collectives over unequal parts: the workers die at the first step. This
``vllm.general_plugins`` entry point adds what is missing at load time. It changes nothing on
another platform, and nothing that runs without expert parallelism.
"""

from __future__ import annotations


def register() -> None:
    """Patch vLLM's CPU classes, once a process."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from frontier_cpu_ep.patches import patch

        patch()
