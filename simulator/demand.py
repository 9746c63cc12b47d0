"""The requests to simulate: arrays of what is asked for, and of what became of it.

The compiled engine works on the arrays themselves; the reference gets a ``Request`` object
that lives from its arrival to its end.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulator.clock import PS_PER_S
from simulator.engine.layout import NONE, Shared
from simulator.engine.layout import Request as Record
from simulator.prefixes import Prefixes
from simulator.scheduling.config import SchedulerConfig
from simulator.scheduling.request import Remote, Request, Status
from traces.errors import ConfigError

Ints = npt.NDArray[np.int64]

OUTCOMES = (
    "arrival_ps", "queued_ps", "first_scheduled_ps", "first_token_ps", "finished_ps", "replica",
    "preemptions", "cached_tokens", "output", "status",
)  # fmt: skip


class Demand:
    """``requests`` (a workload's table, by arrival) prepared for engines of ``config``.

    ``records`` has a ``layout.Request`` for each; ``remote`` says whose KV comes from or goes
    to another engine (a ``Remote`` for each or for all). Raises ConfigError naming the request that
    can never run: longer than max_model_len or larger than the whole KV cache; and if hashes
    of ``hash_block_tokens`` cannot be mapped to the engine's block size.
    """

    def __init__(
        self,
        requests: pa.Table,
        config: SchedulerConfig,
        hash_block_tokens: int | None = None,
        *,
        remote: Ints | Remote = Remote.NONE,
    ) -> None:
        self.table = requests
        self.config = config
        self._names = requests.column("request_id")
        prompts, outputs = (
            requests.column(n).to_numpy() for n in ("prompt_tokens", "output_tokens")
        )
        self._check(prompts, outputs)
        seconds = requests.column("arrival_s").to_numpy()
        arrival_ps = np.rint(seconds * PS_PER_S).astype(np.int64)
        self.arrival_ps = array("q", arrival_ps.tobytes())
        self.prefixes = Prefixes(
            requests, hash_block_tokens, config.block_size, (prompts + outputs) // config.block_size
        )
        self.records = new_records(len(requests))
        self.records["arrival_ps"] = arrival_ps
        self.records["prompt"], self.records["max_tokens"] = prompts, outputs
        self.records["remote"] = remote
        if config.scheduling_policy == "priority":
            self.records["rank"] = np.argsort(np.argsort(self._names.to_numpy(), kind="stable"))
            if "priority" in requests.column_names:
                self.records["priority"] = requests.column("priority").fill_null(0).to_numpy()
        self._give_shared()

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """External id of a request."""
        return str(self._names[index])

    def make(self, index: int) -> Request:
        """The request of one row, not yet arrived."""
        record = self.records[index]
        prompt, output = int(record["prompt"]), int(record["max_tokens"])
        shared = self.prefixes.of(index)
        # Blocks that nobody else has: numbers beyond those of contents.
        own = range((1 << 32) + (index << 32), 1 << 64)
        blocks = (prompt + output) // self.config.block_size
        return Request(
            index,
            prompt,
            output,
            name=self.name(index),
            arrival_ps=int(record["arrival_ps"]),
            priority=int(record["priority"]),
            hashes=[*shared, *own[: blocks - len(shared)]],
            shared=len(shared),
            groups=len(self.config.windows),
            remote=Remote(int(record["remote"])),
        )

    def settle(self, request: Request) -> None:
        """Keep what became of a request that is done."""
        record = self.records[request.index]
        for name in OUTCOMES:
            record[name] = getattr(request, name)

    def _give_shared(self) -> None:
        """Let each record know the contents of its shared blocks."""
        prefixes = self.prefixes
        self._shared = np.zeros(len(prefixes.codes), Shared.dtype)
        self._shared["code"] = prefixes.codes
        self.records["shared"] = np.diff(prefixes.offsets)
        start = self._shared.ctypes.data
        self.records["shared_at"] = start + prefixes.offsets[:-1] * Shared.dtype.itemsize

    def _check(self, prompts: Ints, outputs: Ints) -> None:
        config = self.config
        total = prompts + outputs
        if (bad := np.flatnonzero(outputs < 1)).size:
            raise ConfigError(
                f"{self._where(bad[0])}: output_tokens is {outputs[bad[0]]}, not 1 or more"
            )
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


def new_records(count: int) -> npt.NDArray[np.void]:
    """Records of ``count`` requests of which nothing is known."""
    records = np.zeros(count, Record.dtype)
    for name in ("queued_ps", "first_scheduled_ps", "first_token_ps", "finished_ps", "replica",
                 "cached_tokens", "next", "prev"):  # fmt: skip
        records[name] = NONE
    return records


STATUS_NAMES = {Status.FINISHED: "finished", Status.ABORTED: "aborted"}
