"""The requests to simulate: arrays of what is asked for, and of what became of it.

A ``Request`` object lives only from its arrival to its end, so a million requests cost
their arrays and the few that are in flight.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from simulator.clock import PS_PER_S
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.request import Request, Status
from traces.errors import ConfigError

OUTCOMES = (
    "arrival_ps", "queued_ps", "first_scheduled_ps", "first_token_ps", "finished_ps", "replica",
    "preemptions", "cached_tokens", "output", "status",
)  # fmt: skip


class Demand:
    """``requests`` (a workload's table, by arrival) prepared for engines of ``config``.

    Raises ConfigError naming the request that can never run: longer than max_model_len or
    larger than the whole KV cache; and if hashes of ``hash_block_tokens`` cannot be mapped to
    the engine's block size.
    """

    def __init__(
        self, requests: pa.Table, config: SchedulerConfig, hash_block_tokens: int | None = None
    ) -> None:
        self.table = requests
        self.config = config
        self._names = requests.column("request_id")
        prompts, outputs = (
            requests.column(n).to_numpy() for n in ("prompt_tokens", "output_tokens")
        )
        self._check(prompts, outputs)
        seconds = requests.column("arrival_s").to_numpy()
        self.arrival_ps = array("q", np.rint(seconds * PS_PER_S).astype(np.int64).tobytes())
        self._prompts, self._outputs = array("q", prompts.tobytes()), array("q", outputs.tobytes())
        self._priorities = _column(requests, "priority")
        self._hashes = _Hashes(requests, hash_block_tokens, config.block_size)
        self._own_hashes = config.windows != (None,)
        self.outcome = {name: array("q", [-1]) * len(requests) for name in OUTCOMES}
        self._store = [(name, self.outcome[name]) for name in OUTCOMES]

    def __len__(self) -> int:
        return len(self._prompts)

    def name(self, index: int) -> str:
        """External id of a request."""
        return str(self._names[index])

    def make(self, index: int) -> Request:
        """The request of one row, not yet arrived."""
        prompt, output = self._prompts[index], self._outputs[index]
        hashes, shared = self._hashes.of(index, (prompt + output) // self.config.block_size)
        return Request(
            index,
            prompt,
            output,
            name=self.name(index) if self._priorities is not None else "",
            arrival_ps=self.arrival_ps[index],
            priority=0 if self._priorities is None else self._priorities[index],
            hashes=hashes,
            shared=shared,
            groups=len(self.config.windows),
        )

    def settle(self, request: Request) -> None:
        """Keep what became of a request that is done."""
        index = request.index
        for name, values in self._store:
            values[index] = getattr(request, name)

    def status_counts(self) -> Counter[int]:
        """Requests by status; -1 counts those that never ended."""
        return Counter(self.outcome["status"])

    def _check(self, prompts: np.ndarray, outputs: np.ndarray) -> None:
        config = self.config
        total = prompts + outputs
        if (bad := np.flatnonzero(outputs < 1)).size:
            raise ConfigError(f"{self._where(bad[0])}: output_tokens is {outputs[bad[0]]}, not 1 or more")
        if (bad := np.flatnonzero(total > config.max_model_len)).size:
            i = bad[0]
            raise ConfigError(
                f"{self._where(i)}: {prompts[i]} prompt + {outputs[i]} output tokens exceed "
                f"max_model_len {config.max_model_len} (and {bad.size - 1} more requests)"
            )
        groups = sum(w is None for w in config.windows) or 1
        blocks = -(-total // config.block_size) * groups
        if (bad := np.flatnonzero(blocks > config.num_gpu_blocks - 1)).size:
            i = bad[0]
            raise ConfigError(
                f"{self._where(i)}: needs {blocks[i]} KV blocks of {config.block_size} tokens, "
                f"the engine has {config.num_gpu_blocks - 1} (and {bad.size - 1} more requests)"
            )

    def _where(self, row: int) -> str:
        return f"request {self.name(int(row))!r} (row {row})"


class _Hashes:
    """Chained hashes of each request's blocks at the engine's block size.

    Blocks the workload says nothing about are unique to their request: numbers beyond 64
    bits, never equal to one of the workload's hashes.
    """

    def __init__(self, requests: pa.Table, given: int | None, wanted: int) -> None:
        self._lists: Sequence[Sequence[int]] | None = None
        self._ratio, self._finer = 1, False
        if not given or "block_hashes" not in requests.column_names:
            return
        if max(given, wanted) % min(given, wanted):
            raise ConfigError(
                f"engine.block_size: {wanted} and the workload's hash blocks of {given} tokens do "
                "not divide one another"
            )
        self._finer = wanted < given
        self._ratio = max(given, wanted) // min(given, wanted)
        column = requests.column("block_hashes").combine_chunks()
        flat = column.flatten().to_numpy()
        _, codes, counts = np.unique(flat, return_inverse=True, return_counts=True)
        self._flat = flat
        # A chain once left is never met again: the shared blocks are the leading ones.
        self._is_shared = counts[codes] > 1
        lengths = np.zeros(len(requests) + 1, np.int64)
        sizes = column.value_lengths().fill_null(0).to_numpy()
        np.cumsum(sizes, out=lengths[1:])
        self._offsets = lengths
        self._lists = []

    def of(self, index: int, blocks: int) -> tuple[Sequence[int], int]:
        """Hashes of the first ``blocks`` blocks, and how many of them others may have."""
        own = (1 << 64) + (index << 32)
        if self._lists is None:
            return range(own, own + blocks), 0
        low, high = self._offsets[index], self._offsets[index + 1]
        known = self._flat[low:high].tolist()
        shared = int(self._is_shared[low:high].sum())
        ratio = self._ratio
        if ratio > 1 and self._finer:
            known = [(h << 16) + j for h in known for j in range(ratio)]
            shared *= ratio
        elif ratio > 1:  # the last small block of a large one stands for it: hashes chain
            known = known[ratio - 1 :: ratio]
            shared //= ratio
        known = known[:blocks]
        return [*known, *range(own + len(known), own + blocks)], min(shared, blocks)


def _column(table: pa.Table, name: str) -> list[int] | None:
    if name not in table.column_names:
        return None
    return [v or 0 for v in table.column(name).to_pylist()]


STATUS_NAMES = {Status.FINISHED: "finished", Status.ABORTED: "aborted"}
