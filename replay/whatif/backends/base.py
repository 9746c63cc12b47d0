"""What a backend does, and what a worker process keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

TRIES = 2  # deaths of a process over one task, alone in it, until the task is given up

Make = Callable[[], Callable[[Any], Any]]  # makes, once a process, what answers its tasks


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: its answer, or why its process died of it."""

    index: int
    answer: Any = None
    died: str | None = None


class Backend(Protocol):
    """Evaluates tasks in no particular order."""

    def open(self, make: Make) -> AbstractContextManager[None]:
        """Start; ``make`` is sent to each process once."""

    def run(self, tasks: Sequence[Any]) -> Iterator[Outcome]:
        """The outcome of every task, as they come. A process that dies is replaced and its
        tasks are tried again; a task that kills ``TRIES`` processes is given up.
        """


_made: dict[str, Callable[[Any], Any]] = {}


def answer(token: str, make: Make, task: Any) -> Any:
    """Answer a task in this process; ``make`` is called once a ``token``."""
    if token not in _made:
        _made.clear()
        _made[token] = make()
    return _made[token](task)
