"""Processes of this machine (joblib's loky), or none: this one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from joblib.externals.loky import ProcessPoolExecutor

from replay.whatif.backends.base import TRIES, Make, Outcome

_answer: Callable[[Any], Any]  # of a worker process


def _begin(make: Make) -> None:
    global _answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends us
    _answer = make()


def _task(task: Any) -> Any:
    return _answer(task)


class Here:
    """This very process: the smallest sweeps, and debuggers."""

    @contextmanager
    def open(self, make: Make) -> Iterator[None]:
        """See ``Backend``."""
        self._answer = make()
        yield

    def run(self, tasks: Sequence[Any]) -> Iterator[Outcome]:
        """See ``Backend``; a task that kills this process kills it."""
        for index, task in enumerate(tasks):
            yield Outcome(index, self._answer(task))


class Local:
    """``jobs`` processes, each with one task at a time.

    When one dies the pool is broken and nobody can say whose task it was: each that was
    under way is tried again alone.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs

    @contextmanager
    def open(self, make: Make) -> Iterator[None]:
        """See ``Backend``."""
        self._make = make
        self._pool = self._start(self._jobs)
        try:
            yield
        finally:
            self._pool.shutdown(wait=True, kill_workers=True)

    def run(self, tasks: Sequence[Any]) -> Iterator[Outcome]:
        """See ``Backend``."""
        left = iter(range(len(tasks)))
        under_way: dict[Future[Any], int] = {}
        while True:
            for index in left:
                under_way[self._pool.submit(_task, tasks[index])] = index
                if len(under_way) == self._jobs:
                    break
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            suspects: list[int] = []
            for future in done:
                index = under_way.pop(future)
                try:
                    yield Outcome(index, future.result())
                except BrokenProcessPool:
                    suspects.append(index)
            if suspects:
                suspects += under_way.values()
                under_way.clear()
                self._pool.shutdown(wait=True, kill_workers=True)
                for index in sorted(suspects):
                    yield self._alone(index, tasks[index])
                self._pool = self._start(self._jobs)

    def _alone(self, index: int, task: Any) -> Outcome:
        why = ""
        for _ in range(TRIES):
            pool = self._start(1)
            try:
                return Outcome(index, pool.submit(_task, task).result())
            except BrokenProcessPool as error:
                why = " ".join(str(error).split())
            finally:
                pool.shutdown(wait=True, kill_workers=True)
        return Outcome(index, died=f"its process died {TRIES} times: {why}")

    def _start(self, jobs: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(jobs, initializer=_begin, initargs=(self._make,))
