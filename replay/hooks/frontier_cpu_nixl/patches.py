"""What NixlConnector and NIXL do to the cores of a CPU engine, undone."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from vllm.distributed import nixl_utils
from vllm.platforms.cpu import CpuPlatform

PAUSE_US = 10_000  # at most, without an event


def patch() -> None:
    """Bind no thread, and have NIXL changed when vLLM imports it, at the first agent."""
    load = nixl_utils._load_nixl_attr
    if hasattr(load, "__wrapped__"):
        return

    @wraps(load)
    def patched(name: str) -> Any:
        value = load(name)
        if name == "NixlWrapper" and value is not None:
            api: Any = sys.modules[value.__module__]
            if not isinstance(api.nixlBind, _Bindings):
                api.nixlBind = _Bindings(api.nixlBind)
        return value

    nixl_utils._load_nixl_attr = patched
    CpuPlatform.discover_numa_topology = classmethod(_no_nodes)


def _no_nodes(cls: type) -> list[list[int]]:
    """No node whose last core the connector takes: its thread runs the model too."""
    return []


class _Bindings:
    """NIXL's bindings, whose agents' progress threads pause."""

    def __init__(self, bindings: Any) -> None:
        self._bindings = bindings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def nixlAgent(self, name: str, config: Any) -> Any:
        config.pthrDelay = PAUSE_US
        return self._bindings.nixlAgent(name, config)
