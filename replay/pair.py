"""``frontier capture --deployment``: the engines of a disaggregated deployment, as one bundle.

Each engine is a capture of its own, in a process of its own; what they leave is merged.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from replay.capture import stop_with_parent
from simulator.deployment import Cluster, Deployment, Engine, Link, load_deployment
from traces.bundle import Bundle, claim_directory, read_bundle
from traces.errors import CaptureError, ConfigError
from traces.pairs import merge_pair

ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
CONNECTORS = {"pull": "NixlConnector", "push": "NixlPushConnector"}
OVERRIDES = {"num_gpu_blocks": "num_gpu_blocks_override"}
LOOK_S = 0.2


class Launch(BaseModel):
    """How to start the engines: the ``launch`` part of a deployment file.

    Engines listen on ``port``, ``port`` + 1, ..., in the order of the clusters, and for each
    other on ``side_channel_port`` and up. ``environment_of`` a cluster adds to that of all, as
    ``{decode: {VLLM_CPU_OMP_THREADS_BIND: "1"}}``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    checkpoint: str
    program: list[str] = ["vllm"]
    arguments: list[str] = []
    environment: dict[str, str] = {}
    environment_of: dict[str, dict[str, str]] = {}
    port: int = 8100
    side_channel_port: int = 5600


def run_pair(path: Path, out: Path) -> Bundle:
    """Run the engines of the deployment file until told to stop, return their bundle.

    SIGINT and SIGTERM are handed on. Raises ConfigError for the file, CaptureError if an
    engine ends by itself (the parts are kept then), TraceError if the parts do not match.
    """
    deployment = load_deployment(path)
    launch = _launch(deployment, path)
    link = _link(deployment, path)
    claim_directory(out)
    environment = {**os.environ, **launch.environment, "FRONTIER_KEY": secrets.token_hex(16)}
    parts: dict[str, list[Path]] = {role: [] for role in ROLES}
    engines: list[tuple[subprocess.Popen[bytes], Path]] = []
    with _signals_to(engines) as stopped:
        for cluster in deployment.clusters:
            for replica in range(cluster.replicas):
                number = len(engines)
                part = out / f"{cluster.name}-{replica}"
                parts[cluster.role].append(part)
                serve = serve_command(launch, cluster, link, number)
                command = [sys.executable, "-m", "replay.cli", "capture", "--out", str(part), "--"]
                own = {
                    "VLLM_NIXL_SIDE_CHANNEL_PORT": str(launch.side_channel_port + number),
                    **launch.environment_of.get(cluster.name, {}),
                }
                process = subprocess.Popen(
                    [*command, *serve], env={**environment, **own},
                    start_new_session=True, preexec_fn=stop_with_parent,
                )  # fmt: skip
                engines.append((process, part))
                print(f"frontier: {cluster.name}/{replica} on port {launch.port + number}",
                      file=sys.stderr)  # fmt: skip
        _wait(engines, stopped)
    sides = [[read_bundle(p) for p in parts[role]] for role in ROLES]
    bundle = merge_pair(sides[0], sides[1], _described(deployment), out / "pair",
                        ["frontier", "capture", "--deployment", path.name])  # fmt: skip
    for process_part in (p for paths in parts.values() for p in paths):
        shutil.rmtree(process_part)
    for file in bundle.path.iterdir():
        shutil.move(file, out)
    bundle.path.rmdir()
    return read_bundle(out)


def serve_command(launch: Launch, cluster: Cluster, link: Link, number: int) -> list[str]:
    """``vllm serve`` of one engine; the keys of the file become its arguments."""
    transfer: dict[str, Any] = {
        "kv_connector": CONNECTORS[link.transfer],
        "kv_role": ROLES[cluster.role],
        "kv_connector_extra_config": {"kv_lease_duration": round(link.lease_s)},
    }
    port = str(launch.port + number)
    named = ["--port", port, "--kv-transfer-config", json.dumps(transfer)]
    given = [*launch.arguments, *engine_arguments(cluster.engine)]
    return [*launch.program, "serve", launch.checkpoint, *given, *named]


def engine_arguments(engine: Engine) -> list[str]:
    """The keys that are set, as vLLM's arguments.

    >>> engine_arguments(Engine(max_num_seqs=4, enable_prefix_caching=False))
    ['--max-num-seqs', '4', '--no-enable-prefix-caching']
    """
    words: list[str] = []
    for key in type(engine).model_fields:
        value = getattr(engine, key)
        if key not in engine.model_fields_set or value is None:
            continue
        flag = OVERRIDES.get(key, key).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return words


def _launch(deployment: Deployment, path: Path) -> Launch:
    roles = sorted(cluster.role for cluster in deployment.clusters)
    if roles != ["decode", "prefill"]:
        raise ConfigError(
            f"{path}: clusters: capture starts one prefill and one decode cluster, "
            f"got {', '.join(roles)}"
        )
    try:
        return Launch.model_validate(deployment.launch)
    except ValidationError as error:
        faults = [f"launch.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(faults)}") from None


def _link(deployment: Deployment, path: Path) -> Link:
    names = {cluster.role: cluster.name for cluster in deployment.clusters}
    for link in deployment.links:
        if (link.from_, link.to) == (names["prefill"], names["decode"]):
            return link
    raise ConfigError(f"{path}: links: one from {names['prefill']} to {names['decode']} is needed")


def _described(deployment: Deployment) -> dict[str, Any]:
    """The deployment as a bundle has it: how it was started is this machine's own."""
    described = deployment.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {k: v for k, v in described.items() if k not in ("launch", "model", "operators")}


@contextmanager
def _signals_to(engines: Sequence[tuple[subprocess.Popen[bytes], Path]]) -> Iterator[list[int]]:
    """Hand signals on to the engines; gives the list of those that came."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        for process, _ in engines:
            process.send_signal(number)

    before = {n: signal.signal(n, stop) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(engines: Sequence[tuple[subprocess.Popen[bytes], Path]], stopped: Sequence[int]) -> None:
    """Wait for all to end; if one does by itself the others are stopped. Raises CaptureError."""
    while all(process.poll() is None for process, _ in engines):
        time.sleep(LOOK_S)
    if not stopped:
        for process, _ in engines:
            process.send_signal(signal.SIGTERM)
    codes = {part.name: process.wait() for process, part in engines}
    failed = {name: code for name, code in codes.items() if code}
    if failed or not stopped:
        names = ", ".join(f"{name} (exit code {code})" for name, code in failed.items())
        raise CaptureError(f"engines ended by themselves: {names or 'all'}; see above")
