"""A headless Chromium driven over its DevTools pipe: open a page, click, look, listen."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

BROWSER = next(
    (b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
LIMIT_S = 60.0


class Chrome:
    """One browser with one page; ``requests`` and ``complaints`` are what the page did.

    ``requests`` are the URLs it asked for, ``complaints`` its console messages, uncaught
    errors and what the browser logged about it.
    """

    def __init__(self, scratch: Path, *, width: int = 1280, height: int = 900) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.loaded = False
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        command = [
            str(BROWSER), *FLAGS, f"--user-data-dir={scratch / 'profile'}",
            f"--window-size={width},{height}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        # the browser wants the pipe as its file descriptors 3 and 4; sh knows one digit only
        shell = f'exec "$@" 3<&{reads} 4>&{writes}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command], pass_fds=(reads, writes),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(reads)
        os.close(writes)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        try:
            self._attach(width, height)
        except Exception:
            self.close()
            raise

    def _attach(self, width: int, height: int) -> None:
        """Open a page and listen to it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=False)  # fmt: skip

    def __enter__(self) -> Chrome:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._write)
        os.close(self._read)

    def open(self, page: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.loaded = False
        self.send("Page.navigate", url=page.as_uri())
        self.wait(lambda: self.loaded, "the page to load")

    def send(self, method: str, **parameters: Any) -> Any:
        """Run one DevTools command; returns its result. Raises RuntimeError if it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            for answer in self._messages(1.0):
                if answer.get("id") == self._number:
                    if "error" in answer:
                        raise RuntimeError(f"{method}: {answer['error']}")
                    return answer["result"]
        raise RuntimeError(f"{method}: no answer from the browser")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, condition: Any, what: str) -> None:
        """Wait until ``condition`` (a function, or an expression in the page) holds."""
        deadline_s = time.monotonic() + LIMIT_S
        while not (self.evaluate(condition) if isinstance(condition, str) else condition()):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"waited {LIMIT_S:g} s for {what}")
            for _ in self._messages(0.05):
                pass

    def click(self, selector: str, index: int = 0) -> None:
        """Press and release the mouse in the middle of an element."""
        x, y = self.middle(selector, index)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def hover(self, selector: str, index: int = 0) -> None:
        """Move the mouse to the middle of an element."""
        x, y = self.middle(selector, index)
        for dx in (-2, 0):
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x + dx, y=y)

    def picture(self, *, quality: int = 60) -> bytes:
        """What the window shows, as WebP."""
        found = self.send("Page.captureScreenshot", format="webp", quality=quality)
        return base64.b64decode(found["data"])

    def middle(self, selector: str, index: int = 0) -> tuple[float, float]:
        """Where the middle of an element lies in the window, scrolled into view if need be."""
        found = self.evaluate(
            f"(() => {{ const e = document.querySelectorAll({json.dumps(selector)})[{index}];"
            "if (!e) return null; let r = e.getBoundingClientRect();"
            "if (r.top < 60 || r.bottom > innerHeight) {"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "r = e.getBoundingClientRect(); }"
            "return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        if found is None:
            raise RuntimeError(f"no element {selector} ({index})")
        return found[0], found[1]

    def _messages(self, wait_s: float) -> list[dict[str, Any]]:
        """What the browser said within ``wait_s``; keeps note of what the page did."""
        if b"\0" not in self._buffer and select.select([self._read], [], [], wait_s)[0]:
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("the browser has gone")
            self._buffer += part
        *parts, self._buffer = self._buffer.split(b"\0")
        messages = [json.loads(part) for part in parts]
        for message in messages:
            self._note(message.get("method", ""), message.get("params", {}))
        return messages

    def _note(self, method: str, given: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Runtime.consoleAPICalled":
            values = [a.get("value", a.get("description")) for a in given["args"]]
            self.complaints.append(f"console.{given['type']}: {values}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(f"error: {given['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.complaints.append(f"{given['entry']['level']}: {given['entry']['text']}")
