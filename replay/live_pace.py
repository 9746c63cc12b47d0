"""When requests leave: at their own times, a fixed number in flight, or as sessions go on.

Every pace calls ``send(row, due_s)``, which waits for ``due_s`` (the monotonic clock) and
returns when the answer is there, whether it was one. A ``Heartbeat`` beside it tells how far
behind the client itself is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pyarrow as pa

from traces.errors import ConfigError

PREPARE_S = 0.05  # the prompt is made this long before it is due
START_S = 0.2  # from the end of the warm-up to the workload's zero
BEAT_S = 0.02
FIRST_BEATS = 10  # while connections open

Send = Callable[[int, float], Awaitable[bool]]


async def open_loop(send: Send, arrival_s: Sequence[float]) -> None:
    """Each row at its own time, whatever the server does."""
    zero_s = time.monotonic() + START_S - arrival_s[0]
    async with asyncio.TaskGroup() as tasks:
        for row, at_s in enumerate(arrival_s):
            due_s = zero_s + at_s
            await asyncio.sleep(due_s - PREPARE_S - time.monotonic())
            tasks.create_task(_as_coroutine(send, row, due_s))


async def closed_loop(send: Send, rows: int, concurrency: int) -> None:
    """``concurrency`` rows in flight, the next as one is answered."""
    left = iter(range(rows))

    async def worker() -> None:
        for row in left:
            await send(row, time.monotonic())

    await asyncio.gather(*(worker() for _ in range(concurrency)))


async def session_loop(
    send: Send, sessions: Sequence[Sequence[int]], arrival_s: Sequence[float],
    think_s: Sequence[float | None], concurrency: int | None,
) -> int:  # fmt: skip
    """Sessions, each turn ``think_s`` after the answer before it.

    A session begins when its first row arrives, or with ``concurrency`` when one of so many
    ends. One whose turn fails ends there; returns how many turns were not sent for that.
    """
    unsent = 0

    async def session(rows: Sequence[int], due_s: float) -> None:
        nonlocal unsent
        for place, row in enumerate(rows):
            if not await send(row, due_s):
                unsent += len(rows) - place - 1
                return
            if place + 1 < len(rows):
                due_s = time.monotonic() + (think_s[rows[place + 1]] or 0.0)

    if concurrency is not None:
        left = iter(sessions)

        async def worker() -> None:
            for rows in left:
                await session(rows, time.monotonic())

        await asyncio.gather(*(worker() for _ in range(concurrency)))
        return unsent
    zero_s = time.monotonic() + START_S - arrival_s[sessions[0][0]]
    async with asyncio.TaskGroup() as tasks:
        for rows in sessions:
            due_s = zero_s + arrival_s[rows[0]]
            await asyncio.sleep(due_s - PREPARE_S - time.monotonic())
            tasks.create_task(session(rows, due_s))
    return unsent


def sessions_of(requests: pa.Table) -> list[list[int]]:
    """Rows of each session in the order of its turns, sessions by their first arrival.

    A row without a session is one of its own. Raises ConfigError if no row has one.
    """
    names = "session_id" in requests.column_names and requests.column("session_id").to_pylist()
    if not names or all(name is None for name in names):
        raise ConfigError("--sessions: the workload has no sessions (no session_id)")
    groups: dict[object, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(row if name is None else name, []).append(row)
    if "turn" in requests.column_names:
        turns = requests.column("turn").to_pylist()
        for rows in groups.values():
            rows.sort(key=lambda row: (turns[row] or 0, row))
    return sorted(groups.values(), key=lambda rows: rows[0])


class Heartbeat:
    """How late the client's own event loop runs what is due, while it sends."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Measure until the block ends."""
        task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            task.cancel()

    async def _beat(self) -> None:
        while True:
            due_s = time.monotonic() + BEAT_S
            await asyncio.sleep(BEAT_S)
            self._lags_s.append(time.monotonic() - due_s)

    def p99_s(self) -> float:
        """The 99th percentile of the lag, in seconds; 0 where there was no time for one."""
        lags = self._lags_s[FIRST_BEATS:]
        return float(np.percentile(lags, 99)) if lags else 0.0


async def _as_coroutine(send: Send, row: int, due_s: float) -> None:
    await send(row, due_s)
