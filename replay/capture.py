"""``frontier capture``: run a vLLM server with the hooks in it, leave a bundle when it stops."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from replay.command import hook_environment, hooked_command, name_vllm
from traces.bundle import SPOOL, Bundle, claim_directory
from traces.errors import CaptureError
from traces.spool import spool_to_bundle

ORPHANS_S = 5.0  # how long what the server left behind may take to end
_PR_SET_PDEATHSIG = 1


def run_capture(command: Sequence[str], out: Path, *, profile_kernels: bool = False) -> Bundle:
    """Run ``command`` (``vllm serve ...``) to its end and return what it did as a bundle.

    ``profile_kernels`` also times the operators of some passes, which slows these down.

    Output passes through. SIGINT and SIGTERM are handed to the server, which stops in good
    order; a second one kills it. Raises CaptureError if the server ends by itself (vLLM's
    exit code is 0 also when its engine died), after keeping what was captured, and TraceError
    if ``out`` cannot be written.
    """
    hooked = hooked_command(command)
    spool = out / SPOOL
    stopped_by: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        added = hook_environment(spool.absolute(), os.environ, profile_kernels=profile_kernels)
        environment = {**os.environ, **added}
        extra = name_vllm(hooked, Path(scratch), environment)
        environment["PYTHONPATH"] += os.pathsep + str(extra)
        claim_directory(out)
        spool.mkdir()
        (spool / "capture.0.jsonl").write_text(json.dumps({"command": list(command)}) + "\n")
        try:
            code = _run(hooked, environment, stopped_by)
        except CaptureError:
            _close(out, None)
            raise
    bundle = _close(out, None if stopped_by and code == 0 else _cause(code))
    if not stopped_by:
        raise CaptureError(f"the server ended by itself, {_cause(code)}; {_kept(out, bundle)}")
    if bundle is None:
        raise CaptureError(f"stopped before an engine had started; {_kept(out, bundle)}")
    return bundle


def _run(command: list[str], environment: dict[str, str], stopped_by: list[int]) -> int:
    """Run the server in a process group of its own, pass signals on, return its exit code."""
    try:
        server = subprocess.Popen(
            command, env=environment, start_new_session=True, preexec_fn=stop_with_parent
        )
    except OSError as error:
        raise CaptureError(f"cannot run {command[0]}: {error.strerror}") from None

    def stop(number: int, frame: FrameType | None) -> None:
        stopped_by.append(number)
        if len(stopped_by) == 1:
            print("frontier: stopping the server; once more to kill it", file=sys.stderr)
            server.send_signal(number)
        else:
            _kill_group(server.pid, signal.SIGKILL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = server.wait()
        _end_group(server.pid)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code


def stop_with_parent() -> None:
    """Have the kernel stop a child when its parent is killed, or it would serve on.

    SIGINT gets its default back: a shell's background job ignores it, and so would the server
    until it installs a handler of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end_group(group: int) -> None:
    """End what the server left behind, so that nothing writes to the spool any more."""
    deadline_s = time.monotonic() + ORPHANS_S
    while _kill_group(group, signal.SIGTERM) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    _kill_group(group, signal.SIGKILL)


def _kill_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _close(out: Path, cause: str | None) -> Bundle | None:
    """Make the bundle, with a note if the server did not end in good order.

    Without any engine in the spool nothing is left behind.
    """
    if not any((out / SPOOL).glob("engine.*.jsonl")):
        shutil.rmtree(out / SPOOL)
        if not any(out.iterdir()):
            out.rmdir()
        return None
    return spool_to_bundle(out, {"server": f"ended with {cause}"} if cause else {})


def _cause(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _kept(out: Path, bundle: Bundle | None) -> str:
    if bundle is None:
        return "nothing was captured"
    return f"the {len(bundle.requests)} requests captured until then are kept in {out}"
