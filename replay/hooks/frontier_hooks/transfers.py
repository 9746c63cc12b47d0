"""KV that this worker pulled from another engine, as rows: NixlConnector's own bookkeeping.

A pull is posted between ``start_s`` and ``posted_s``; NIXL says how long it ran
(``duration_s``) and the connector sees at ``seen_s``, when it looks next, that it is over.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from frontier_hooks.spool import Stream


def record_transfers(directory: Path, replica: int, rank: int) -> None:
    """Have the worker's connector written down as it pulls; nothing if it is none that does."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    if not has_kv_transfer_group():
        return
    worker = getattr(get_kv_transfer_group(), "connector_worker", None)
    if all(hasattr(worker, name) for name in ("_read_blocks_for_req", "_pop_done_transfers")):
        _Watch(Stream(directory, f"transfers.{replica}.{rank}"), worker)


class _Watch:
    """Stands before three methods of the connector's worker."""

    def __init__(self, stream: Stream, worker: Any) -> None:
        self._stream = stream
        self._worker = worker
        self._open: dict[str, dict[str, Any]] = {}
        self._told: dict[int, Any] = {}  # what NIXL told of a transfer, by handle
        self._read = worker._read_blocks_for_req
        self._pop = worker._pop_done_transfers
        self._ask = worker.nixl_wrapper.get_xfer_telemetry
        worker._read_blocks_for_req = self.read
        worker._pop_done_transfers = self.pop
        worker.nixl_wrapper.get_xfer_telemetry = self.ask

    def read(self, request_id: str, meta: Any) -> Any:
        start_s = time.monotonic()
        done = self._read(request_id, meta)
        handles = list(self._worker._recving_transfers.get(request_id, ()))
        if handles:  # not while the engines still introduce themselves
            self._open[request_id] = {
                "id": request_id,
                "source": str(meta.remote.engine_id),
                "start_s": start_s,
                "posted_s": time.monotonic(),
                "handles": handles,
            }
        return done

    def ask(self, handle: Any) -> Any:
        told = self._ask(handle)
        self._told[handle] = told
        return told

    def pop(self, transfers: Any) -> Any:
        done, failed = self._pop(transfers)
        for request_id in done:
            row = self._open.pop(request_id, None)
            if row is None or request_id in failed:
                continue
            told = [self._told.pop(h) for h in row.pop("handles") if h in self._told]
            row["bytes"] = sum(t.totalBytes for t in told)
            row["duration_s"] = max((t.xferDuration for t in told), default=0) / 1e6
            row["seen_s"] = time.monotonic()
            self._stream.write(row)
        return done, failed
