"""The load snapshot behind each choice of a data-parallel rank, from the front end.

vLLM has no class argument for its front end, so this one is a ``vllm.general_plugins``
entry point (the dist-info folder beside this package), which wraps the choice at load time.
"""

from __future__ import annotations

import os
import time
from functools import wraps
from typing import Any

from frontier_hooks.spool import SPOOL_ENV, Stream, spool_directory

_streams: dict[str, Stream] = {}


def register() -> None:
    """Wrap the choice of rank, once a process; does nothing outside a capture."""
    if SPOOL_ENV not in os.environ:
        return
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    choose = DPLBAsyncMPClient.get_core_engine_for_request
    if not hasattr(choose, "__wrapped__"):
        DPLBAsyncMPClient.get_core_engine_for_request = _recorded(choose)


def _recorded(choose: Any) -> Any:
    @wraps(choose)
    def get_core_engine_for_request(self: Any, request: Any) -> Any:
        load = [list(entry) for entry in self.lb_engines]
        row = {
            "id": request.request_id,
            "time_s": time.monotonic(),
            "client": self.client_index,
            "clients": getattr(self, "client_count", 1),
            "start_index": getattr(self, "eng_start_index", 0),
            "in_flight": _in_flight(self),
            "waiting": [entry[0] for entry in load],
            "running": [entry[1] for entry in load],
            "kv_usage": [entry[2] if len(entry) > 2 else 0.0 for entry in load],
        }
        engine = choose(self, request)
        row["replica"] = self.core_engines.index(engine)
        _stream(self.client_index).write(row)
        return engine

    return get_core_engine_for_request


def _in_flight(client: Any) -> list[int]:
    counts = getattr(client, "engine_inflight", {})
    return [int(counts.get(engine, 0)) for engine in client.core_engines]


def _stream(client_index: int) -> Stream:
    name = f"routing.{client_index}"
    if name not in _streams:
        _streams[name] = Stream(spool_directory(), name)
    return _streams[name]
