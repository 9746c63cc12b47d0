"""The parts that run inside the server: streams, hashes, expert counts, secrets, imports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from frontier_hooks.describe import plain
from frontier_hooks.experts import ExpertCounter, routers
from frontier_hooks.hashing import chain, root
from frontier_hooks.routing import _recorded
from frontier_hooks.spool import Stream

from replay.command import HOOKS
from traces.spool.streams import Spool

WRITER = """
import sys
from pathlib import Path
from frontier_hooks.spool import Stream
stream = Stream(Path(sys.argv[1]), "forward.0")
for step in range(10**9):
    stream.write({"step": step, "dummy": False, "forward_s": 0.5, "thread_s": 0.5, "start_s": 1.0})
    print(step, flush=True)
"""
FULL_DISK = """
import resource, sys
from pathlib import Path
from frontier_hooks.spool import Stream
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
stream = Stream(Path(sys.argv[1]), "forward.0")
for step in range(100):
    stream.write({"step": step, "dummy": False, "forward_s": 0.5, "thread_s": 0.5, "start_s": 1.0})
print("served on")
"""
IMPORTS = """
import sys
before = set(sys.modules)
import frontier_hooks.recorder, frontier_hooks.forward, frontier_hooks.routing
import frontier_hooks.describe
frontier_hooks.routing.register()  # outside a capture: nothing
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env={"PYTHONPATH": str(HOOKS)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


def test_kill_9_loses_no_row_that_was_written(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], env={"PYTHONPATH": str(HOOKS)},
        stdout=subprocess.PIPE, text=True,
    ) as writer:  # fmt: skip
        assert writer.stdout is not None
        seen = [next(writer.stdout) for _ in range(2000)]
        writer.send_signal(signal.SIGKILL)
        seen += list(writer.stdout)
    assert writer.returncode == -signal.SIGKILL
    steps = Spool(tmp_path).rows("forward.0").column("step").to_pylist()
    assert steps == list(range(len(steps)))
    assert len(steps) >= len(seen)


def test_a_full_disk_stops_the_stream_and_not_the_server(tmp_path: Path) -> None:
    done = python(FULL_DISK, tmp_path)
    assert done.stdout == "served on\n"
    assert done.stderr.count("capture stops here, a row did not fit") == 1
    spool = Spool(tmp_path)
    steps = spool.rows("forward.0").column("step").to_pylist()
    assert steps == list(range(len(steps)))
    assert steps
    assert spool.torn == ["forward.0"]


def test_a_stream_is_never_appended_to_by_a_second_life(tmp_path: Path) -> None:
    Stream(tmp_path, "steps.0")
    with pytest.raises(FileExistsError):
        Stream(tmp_path, "steps.0")


def test_nothing_heavy_comes_into_the_server() -> None:
    allowed = {*sys.stdlib_module_names, "frontier_hooks", "numpy", "msgspec"}
    assert set(python(IMPORTS).stdout.split()) - allowed == set()


def test_hashes_are_chained_and_keyed() -> None:
    tokens, key = list(range(100, 112)), b"k" * 16
    start = root(key)
    hashes, digest = chain(tokens, 4, start, key)
    assert len(set(hashes)) == 3
    first, middle = chain(tokens[:6], 4, start, key)
    assert first == hashes[:1]
    rest, end = chain(tokens[4:], 4, middle, key)
    assert (first + rest, end) == (hashes, digest)
    assert chain([1, *tokens[1:]], 4, start, key)[0][1:] != hashes[1:]
    other = b"x" * 16
    assert not set(chain(tokens, 4, root(other), other)[0]) & set(hashes)


def test_experts_are_counted_by_layer() -> None:
    modules, before = [], []

    def router(capture_fn: Callable[[Any], None] | None = None) -> SimpleNamespace:
        found = SimpleNamespace(global_num_experts=4, capture_fn=capture_fn)
        found.set_capture_fn = lambda fn: setattr(found, "capture_fn", fn)
        return found

    for layer, one in ((5, router()), (3, router(before.append))):
        modules.append(SimpleNamespace(layer_id=layer, router=one))
    model = SimpleNamespace(modules=lambda: [SimpleNamespace(), *modules])
    found = routers(model)
    assert [layer for layer, _ in found] == [3, 5]
    counter = ExpertCounter(found, "cpu")
    assert counter.take() is None
    ids = np.array([[0, 1], [0, 3], [0, 1]])
    for _, one in found:
        one.capture_fn(HasNumpy(ids))
    assert counter.take().tolist() == [[3, 2, 0, 1]] * 2
    assert len(before) == 1  # whoever listened before still hears
    found[0][1].capture_fn(HasNumpy(ids))
    counter.reset()
    assert counter.take() is None


class HasNumpy:
    """As much of a tensor as the counter uses."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    def numpy(self) -> np.ndarray:
        return self._ids


def test_the_choice_of_rank_is_written_with_the_load_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRONTIER_SPOOL", str(tmp_path))
    client = SimpleNamespace(
        lb_engines=[[1, 2, 0.5], [0, 1]], client_index=0, client_count=2, eng_start_index=1,
        core_engines=[b"0", b"1"], engine_inflight={b"1": 3},
    )  # fmt: skip

    def choose(self: SimpleNamespace, request: Any) -> bytes:
        self.lb_engines[1][0] += self.client_count  # vLLM counts what it sends at once
        return b"1"

    assert _recorded(choose)(client, SimpleNamespace(request_id="r")) == b"1"
    row = json.loads((tmp_path / "routing.0.jsonl").read_text())
    assert row.pop("time_s") > 0
    assert row == {
        "id": "r", "client": 0, "clients": 2, "start_index": 1, "in_flight": [0, 3],
        "waiting": [1, 0], "running": [2, 1], "kv_usage": [0.5, 0.0], "replica": 1,
    }  # fmt: skip


def test_a_configuration_is_written_without_secrets() -> None:
    class Kind(Enum):
        AUTO = 1

    config = {
        "hf_token": "abc", "api_key": "abc", "max_num_batched_tokens": 4, "tokenizer": "t",
        "kind": Kind.AUTO, "path": Path("/a/b"), "set": {2, 1}, "limit": float("inf"),
        "object": object(), "nested": {"password": "abc", "depth": {"secret": None}},
    }  # fmt: skip
    assert plain(config) == {
        "hf_token": "***", "api_key": "***", "max_num_batched_tokens": 4, "tokenizer": "t",
        "kind": "AUTO", "path": "/a/b", "set": [1, 2], "limit": "inf", "object": "<object>",
        "nested": {"password": "***", "depth": {"secret": None}},
    }  # fmt: skip
