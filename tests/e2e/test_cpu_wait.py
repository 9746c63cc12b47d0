"""The plugin that has processes of a CPU server sleep while they wait for each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_server import ENVIRONMENT, LIMIT_S

from replay.command import HOOKS

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

WAIT_S = 0.6
# a reader that has just read waits for a message that is WAIT_S late
WAITING = """
import json, sys, threading, time
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue
if sys.argv[1] == "asleep":
    from frontier_cpu_wait import sleep_at_once
    sleep_at_once()
    sleep_at_once()  # more than once does no harm
writer = MessageQueue(1, 1)
found = {}

def read():
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    reader.wait_until_ready()
    reader.dequeue()
    cpu_s, start_s = time.thread_time(), time.monotonic()
    found["message"] = reader.dequeue()
    found["cpu_s"], found["wall_s"] = time.thread_time() - cpu_s, time.monotonic() - start_s

thread = threading.Thread(target=read)
thread.start()
writer.wait_until_ready()
writer.enqueue("first")
time.sleep(float(sys.argv[2]))
writer.enqueue("second")
thread.join()
print(json.dumps(found))
"""


def waiting(how: str, tmp_path: Path) -> dict[str, float | str]:
    """Message, CPU seconds and seconds of a reader that waits."""
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    said = subprocess.run(
        [sys.executable, str(script), how, str(WAIT_S)], capture_output=True, text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(HOOKS)}, timeout=LIMIT_S, check=True,
    ).stdout  # fmt: skip
    found: dict[str, float | str] = json.loads(said.splitlines()[-1])
    return found


def test_a_reader_sleeps_until_the_message_comes(tmp_path: Path) -> None:
    asleep = waiting("asleep", tmp_path)
    assert asleep["message"] == "second"
    assert WAIT_S / 2 < float(asleep["wall_s"]) < WAIT_S + 4  # not vLLM's look every 5 s
    assert float(asleep["cpu_s"]) < WAIT_S / 10


def test_vllm_itself_polls(tmp_path: Path) -> None:
    """Else the plugin would be needed no longer."""
    assert float(waiting("polling", tmp_path)["cpu_s"]) > WAIT_S / 10
