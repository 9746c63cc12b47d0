"""The processes of a launch: pinned, warmed, given one run after another."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from replay.af_testbed.shape import STOPPED, Launch, Run
from replay.af_testbed.stamps import Record
from traces.errors import CaptureError

LOOK_S = 0.5
SHARED_MEMORY = Path("/dev/shm")
# one thread; and memory that is freed stays with the process, whose steps would otherwise
# take page faults that no two runs share
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 34),
}


def cores_for(ranks: int) -> list[int]:
    """A core for each process, in turn where there are fewer."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[i % len(cores)] for i in range(ranks)]


class Engine:
    """One attention process and its FFN processes; a context manager."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.cores = cores_for(1 + launch.ffn_ranks)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []

    def __enter__(self) -> Self:
        from replay.af_testbed.wire import memory_size

        context = multiprocessing.get_context("spawn")
        os.environ.update(ENVIRONMENT)  # read when a process starts
        with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY) as file:
            file.truncate(memory_size(self.launch))
            for rank, core in enumerate(self.cores):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, self.launch, file.name, rank, core), daemon=True
                )
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            self._answers()  # the file may go once all have mapped it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # they end
        for process in self._processes:
            process.join(5)
            if process.is_alive():
                process.terminate()
                process.join()

    def run(self, runs: Sequence[Run]) -> list[list[Record]]:
        """By run, the records of the attention rank and of each FFN rank. Raises CaptureError.

        The runs take turns, step by step.
        """
        for pipe in self._pipes:
            pipe.send(runs)
        return [list(ranks) for ranks in zip(*self._answers(), strict=True)]

    def _answers(self) -> list[Any]:
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pipes):  # one that died leaves another waiting for it
            for i, pipe in enumerate(self._pipes):
                if i not in answers and pipe.poll(LOOK_S):
                    try:
                        answers[i] = pipe.recv()
                    except (EOFError, ConnectionResetError):
                        raise CaptureError("a process of the testbed died") from None
        failures = [answer for answer in answers.values() if isinstance(answer, str)]
        if failures:
            # the first cause, rather than that of those who waited for it
            failures.sort(key=lambda text: STOPPED in text)
            raise CaptureError(f"a process of the testbed failed:\n{failures[0]}")
        return [answers[i] for i in range(len(self._pipes))]


def warm(engine: Engine, runs: Sequence[Run], output: int = 4) -> None:
    """Some steps of each run: code is loaded, memory touched, buffers grown."""
    engine.run([replace(run, output=output) for run in runs])


def _serve(pipe: Connection, launch: Launch, memory_file: str, rank: int, core: int) -> None:
    """A process: rank 0 is attention, the others the FFN ranks from 0."""
    os.sched_setaffinity(0, {core})
    with Path(memory_file).open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    try:
        import torch

        from replay.af_testbed.attention import AttentionRank
        from replay.af_testbed.ffn import FFNRank

        torch.set_num_threads(1)
        with torch.inference_mode():
            worker: AttentionRank | FFNRank
            worker = FFNRank(launch, memory, core, rank - 1) if rank else AttentionRank(
                launch, memory, core
            )  # fmt: skip
            gc.collect()
            gc.freeze()
            gc.disable()
            pipe.send(None)
            while True:
                pipe.send(worker.run(pipe.recv()))
                gc.collect()
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass
    except BaseException:
        memory[:8] = (1).to_bytes(8, "little")  # the others must not wait for this one
        pipe.send(traceback.format_exc())
