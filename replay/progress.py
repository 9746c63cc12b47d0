"""Progress on stderr for work that takes more than two seconds: done, rate, time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import monotonic

PATIENCE_S = 2.0
LINE_EVERY_S = 10.0

Advance = Callable[[int], None]


@contextmanager
def progress_of(total: int, what: str) -> Iterator[Advance]:
    """Yield ``advance(done)``: a bar where stderr is a terminal, else a line now and then."""
    start = monotonic()
    show: Advance | None = None
    with ExitStack() as stack:

        def advance(done: int) -> None:
            nonlocal show
            if show is None:
                if monotonic() - start < PATIENCE_S:
                    return
                if sys.stderr.isatty():
                    show = stack.enter_context(_bar(total, what))
                else:
                    show = _lines(total, what, start)
            show(done)

        yield advance


def _lines(total: int, what: str, start: float) -> Advance:
    due = start

    def show(done: int) -> None:
        nonlocal due
        now = monotonic()
        if now >= due and done:
            due = now + LINE_EVERY_S
            rate = done / (now - start)
            left = (total - done) / rate
            line = f"{what}: {done:,} of {total:,}, {rate:,.0f}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    return show


@contextmanager
def _bar(total: int, what: str) -> Iterator[Advance]:
    # Loaded here: most replays are over before there is anything to show.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
