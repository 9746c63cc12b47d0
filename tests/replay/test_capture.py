"""``frontier capture`` as a process: signals, deaths and what is left, with a fake server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.command import HOOKS
from traces.bundle import Bundle, read_bundle

HERE = Path(__file__).parent
STOPPING = "frontier: stopping the server; once more to kill it"
Start = Callable[..., "Capture"]


class Capture:
    """A running ``frontier capture`` and what it has printed."""

    def __init__(self, out: Path, *command: str) -> None:
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-m", "replay.cli", "capture", "--out", str(out), "--", *command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.err = ""

    def says(self, word: str) -> int:
        """Wait for the server to print ``word`` and a number; returns the number."""
        assert self.process.stdout is not None
        line = next(line for line in self.process.stdout if line.startswith(word))
        return int(line.split()[1])

    def ends(self, *numbers: signal.Signals) -> int:
        """Send signals half a second apart, wait for the end, return the exit code."""
        for number in numbers:
            time.sleep(0.5)
            self.process.send_signal(number)
        self.err = self.process.communicate(timeout=60)[1]
        return self.process.returncode

    @property
    def said(self) -> list[str]:
        """What frontier itself printed to stderr."""
        return [line for line in self.err.splitlines() if not line.startswith(" ")]

    @property
    def bundle(self) -> Bundle:
        """What it left."""
        return read_bundle(self.out)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    program, captures = tmp_path / "vllm", []
    path = [str(HERE), str(HOOKS)]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {path!r}\nimport fake_vllm\n"
        "fake_vllm.main()\n"
    )
    program.chmod(0o755)

    def begin(manner: str, out: str = "out") -> Capture:
        captures.append(Capture(tmp_path / out, str(program), "serve", manner))
        return captures[-1]

    yield begin
    for capture in captures:
        capture.process.kill()
        capture.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_server_and_closes_the_bundle(
    start: Start, number: signal.Signals
) -> None:
    capture = start("steady")
    capture.says("serving")
    assert capture.ends(number) == 0
    bundle = capture.bundle
    requests, steps = len(bundle.requests), len(bundle.table("steps"))
    assert steps > 50
    assert capture.said == [
        STOPPING, f"captured {requests} requests in {steps} steps: {capture.out}"
    ]  # fmt: skip
    assert not (capture.out / "spool").exists()
    assert bundle.manifest.command == ["vllm", "serve", "steady"]
    assert "server" not in bundle.manifest.notes


def test_kill_9_of_the_capture_ends_the_server_too(start: Start) -> None:
    capture = start("steady")
    server = capture.says("serving")
    assert capture.ends(signal.SIGKILL) == -signal.SIGKILL
    gone(server)
    bundle = capture.bundle
    assert len(bundle.table("steps")) > 50
    assert set(bundle.requests["status"].to_pylist()) <= {"finished", "unfinished"}
    again = start("steady")
    assert again.ends() == 2
    assert again.said == [
        f"frontier: {capture.out}: exists and is not a bundle; choose another --out"
    ]


def test_a_server_that_dies(start: Start) -> None:
    capture = start("dies")
    assert capture.ends() == 2
    assert capture.said == [
        "frontier: the server ended by itself, exit code 3; the 5 requests captured until then "
        f"are kept in {capture.out}"
    ]
    bundle = capture.bundle
    assert (len(bundle.requests), len(bundle.table("steps"))) == (5, 40)
    assert bundle.manifest.notes["server"] == "ended with exit code 3"
    again = start("steady")
    assert again.ends() == 2
    assert again.said == [
        f"frontier: {capture.out}: holds a measured bundle, which is never overwritten"
    ]


def test_a_server_that_never_was(start: Start, tmp_path: Path) -> None:
    capture = start("empty")
    assert capture.ends() == 2
    assert capture.said == [
        "frontier: the server ended by itself, exit code 1; nothing was captured"
    ]
    assert not capture.out.exists()
    missing = Capture(tmp_path / "out", str(tmp_path / "no" / "vllm"), "serve", "m")
    assert missing.ends() == 2
    assert missing.said == [
        f"frontier: cannot run {tmp_path / 'no' / 'vllm'}: No such file or directory"
    ]
    assert not missing.out.exists()


def test_a_second_signal_kills_a_deaf_server(start: Start) -> None:
    capture = start("deaf")
    capture.says("serving")
    assert capture.ends(signal.SIGINT, signal.SIGINT) == 0
    assert capture.said[0] == STOPPING
    assert capture.bundle.manifest.notes["server"] == "ended with signal SIGKILL"


def test_what_the_server_leaves_behind_is_ended(start: Start) -> None:
    capture = start("orphan")
    orphan = capture.says("orphan")
    capture.says("serving")
    assert capture.ends(signal.SIGTERM) == 0
    gone(orphan)


def gone(pid: int) -> None:
    """Wait until there is no such process."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")
