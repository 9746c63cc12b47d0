"""Append-only streams of JSON rows: one ``write`` a row, so a kill loses no finished row."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPOOL_ENV = "FRONTIER_SPOOL"
KEY_ENV = "FRONTIER_KEY"

logger = logging.getLogger("vllm.frontier")


def _json_encoder() -> Callable[[Any], bytes]:
    try:
        import msgspec
    except ImportError:  # vLLM brings msgspec; the tests of the recorder run without vLLM
        encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
        return lambda row: encoder.encode(row).encode()
    return msgspec.json.Encoder().encode  # type: ignore[no-any-return]


encode = _json_encoder()


class Stream:
    """One file of the spool, written by one process.

    A server life has its own spool: an existing file raises FileExistsError. When the disk
    refuses a row the stream says so in the server's log and stops; the server goes on.
    """

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / f"{name}.jsonl"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._fd: int | None = os.open(self.path, flags, 0o644)

    def write(self, row: Any) -> None:
        """Append one row; the row is complete on return or reported as lost."""
        if self._fd is None:
            return
        data = encode(row) + b"\n"
        try:
            whole = os.write(self._fd, data) == len(data)
        except OSError as error:
            logger.error("frontier: %s: %s", self.path, error)
            whole = False
        if not whole:
            logger.error("frontier: %s: capture stops here, a row did not fit", self.path)
            os.close(self._fd)
            self._fd = None


def spool_directory() -> Path:
    """The directory named by FRONTIER_SPOOL; raises RuntimeError without it."""
    if not (path := os.environ.get(SPOOL_ENV)):
        raise RuntimeError(f"frontier: set {SPOOL_ENV} to the directory to record into")
    return Path(path)


def hash_key() -> bytes:
    """The key of the prefix hashes; raises RuntimeError without FRONTIER_KEY.

    It must be shared: DP ranks with keys of their own would hash equal prefixes apart.
    """
    if not (key := os.environ.get(KEY_ENV)):
        raise RuntimeError(f"frontier: set {KEY_ENV} to a random hex string")
    return bytes.fromhex(key)


def clock_pair() -> dict[str, float]:
    """The epoch clock and the monotonic clock at the same instant, in seconds."""
    return {"epoch_s": time.time(), "monotonic_s": time.monotonic()}
