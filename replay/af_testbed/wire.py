"""Mailboxes in shared memory: one for each micro-batch, FFN rank and direction.

The sender copies the activations in and raises a flag; the receiver spins on it, and on the
time at which the wire delivers. Copies are the sender's and the receiver's own work: nothing
else runs for a transfer.
"""

from __future__ import annotations

import os
import time
from mmap import mmap
from typing import NamedTuple

import torch
from torch import Tensor

from replay.af_testbed.shape import STOPPED, Launch, Wire
from replay.af_testbed.stamps import Stamp

WORDS = 8  # of a header, int64: sequence, rows, deliver_ns
SEQUENCE, ROWS, DELIVER = range(3)
SPINS = 1 << 16  # between looks at whether the others live
STOP = 0  # word 0 of the memory: a process died, the others must not wait for it


class Mailbox:
    """Room for one message: rows of activations, the experts and shares of each."""

    def __init__(self, memory: mmap, start: int, launch: Launch) -> None:
        words = memoryview(memory)
        self._stop = words[:8].cast("q")
        self.header = words[start : start + 8 * WORDS].cast("q")
        at, rows, k = start + 8 * WORDS, launch.max_rows, launch.model.top_k
        self.x = self._tensor(memory, at, torch.float32, rows, launch.model.hidden)
        at += self.x.nbytes
        self.shares = self._tensor(memory, at, torch.float32, rows, k)
        at += self.shares.nbytes
        self.chosen = self._tensor(memory, at, torch.int32, rows, k)
        self._yielding = launch.yielding
        self._parent = os.getppid()

    @staticmethod
    def size(launch: Launch) -> int:
        """Bytes of a mailbox, a multiple of a page."""
        row = 4 * (launch.model.hidden + 2 * launch.model.top_k)
        return -(-(8 * WORDS + launch.max_rows * row) // 4096) * 4096

    @staticmethod
    def _tensor(memory: mmap, at: int, dtype: torch.dtype, *shape: int) -> Tensor:
        count = shape[0] * shape[1]
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=at).view(shape)

    def post(self, sequence: int, rows: int, deliver_ns: int) -> None:
        """Raise the flag: the message is complete and arrives at ``deliver_ns``."""
        self.header[ROWS] = rows
        self.header[DELIVER] = deliver_ns
        self.header[SEQUENCE] = sequence  # x86 keeps stores in order

    def wait(self, sequence: int) -> int:
        """Spin until message ``sequence`` was delivered; its rows. Raises RuntimeError."""
        header, now, spins = self.header, time.perf_counter_ns, 0
        while header[SEQUENCE] != sequence:
            spins += 1
            if self._yielding:
                os.sched_yield()
            if not spins % SPINS and (self._stop[STOP] or os.getppid() != self._parent):
                raise RuntimeError(STOPPED)
        deliver_ns = header[DELIVER]
        while now() < deliver_ns:
            pass
        return header[ROWS]


class Transfer(NamedTuple):
    """A message on the wire."""

    start_ns: int
    deliver_ns: int
    size: int

    def stamp(self, step: int, layer: int, micro_batch: int, stage: str) -> Stamp:
        """Its row of the record."""
        return Stamp(step, layer, micro_batch, stage, self.start_ns, self.deliver_ns, self.size)


class Link:
    """The sending end of a wire in one direction."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._free_ns = 0

    def send(self, box: Mailbox, sequence: int, rows: int, row_bytes: int) -> Transfer:
        """Hand over what was copied into ``box``, as soon as the wire is free."""
        size = rows * row_bytes
        start_ns = max(time.perf_counter_ns(), self._free_ns)
        self._free_ns = start_ns + self._wire.occupied_ns(size)
        deliver_ns = self._free_ns + self._wire.latency_ns
        box.post(sequence, rows, deliver_ns)
        return Transfer(start_ns, deliver_ns, size)


def memory_size(launch: Launch) -> int:
    """Bytes of shared memory for a launch."""
    return 4096 + 2 * launch.ffn_ranks * launch.max_micro_batches * Mailbox.size(launch)


def mailboxes(memory: mmap, launch: Launch, rank: int) -> tuple[list[Mailbox], list[Mailbox]]:
    """Mailboxes to and from an FFN rank, by micro-batch."""
    size, each = Mailbox.size(launch), launch.max_micro_batches
    boxes = [Mailbox(memory, 4096 + (2 * each * rank + i) * size, launch) for i in range(2 * each)]
    return boxes[:each], boxes[each:]
