"""A ``vllm serve`` without vLLM: an endless engine that ends the way its model's name says.

steady   serves until SIGINT or SIGTERM, then exits with 0
deaf     hears neither
dies     exits with 3 after 40 steps
empty    exits with 1 before there is an engine
orphan   like steady, and leaves a child behind that hears no SIGTERM
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from fake_engine import FakeEngine

ORPHAN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    """Serve, as the words after ``vllm serve`` say."""
    manner = sys.argv[2]
    if manner == "empty":
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if manner == "deaf" else leave)
    if manner == "orphan":
        child = subprocess.Popen([sys.executable, "-c", ORPHAN])
        print(f"orphan {child.pid}", flush=True)
    engine = FakeEngine(Path(os.environ["FRONTIER_SPOOL"]))
    print(f"serving {os.getpid()}", flush=True)
    step = 0
    while manner != "dies" or step < 40:
        if step % 8 == 0:
            name = f"cmpl-r{step // 8}-0-00000000"
            engine.add(name, [1, 2, 3], 8)
        engine.step({name: 1 if step % 8 else 3})
        step += 1
        time.sleep(0.002)
    sys.exit(3)


def leave(number: int, frame: FrameType | None) -> None:
    """End in good order."""
    sys.exit(0)
