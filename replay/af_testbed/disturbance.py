"""What the machine did to a step: CPU time the thread got, switches, time stolen."""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import NamedTuple


class Disturbance(NamedTuple):
    """Of one step on one rank."""

    wall_ns: int
    cpu_ns: int  # of the thread
    switches: int  # involuntary
    steal_ticks: int  # of its core, 10 ms each


class Meter:
    """Reads the counters between steps."""

    def __init__(self, core: int) -> None:
        self._name = f"cpu{core} "
        self._stat = Path("/proc/stat").open()  # noqa: SIM115  read between all steps
        self.start()

    def start(self) -> None:
        """A step begins."""
        self._steal, self._switches = self._read()
        self._cpu_ns, self._wall_ns = time.thread_time_ns(), time.perf_counter_ns()

    def stop(self) -> Disturbance:
        """The step ended."""
        wall_ns, cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        steal, switches = self._read()
        return Disturbance(
            wall_ns - self._wall_ns, cpu_ns - self._cpu_ns, switches - self._switches,
            steal - self._steal,
        )  # fmt: skip

    def _read(self) -> tuple[int, int]:
        self._stat.seek(0)
        line = next((n for n in self._stat if n.startswith(self._name)), "")
        fields = line.split()
        steal = int(fields[8]) if len(fields) > 8 else 0
        return steal, resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
