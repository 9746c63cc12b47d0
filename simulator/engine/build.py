"""Machine code for the engine: compiled once, kept on disk, loaded without numba.

``compiled`` marks a function. ``load`` gives the machine code of those in ``entries.py``;
where there is none yet for this machine, ``translate.py`` has numba translate every
function by itself, and LLVM joins and optimises them here (numba alone would compile a
function with all that it calls, again at every level of calls: 19 s instead of 3).
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import llvmlite.binding as llvm

from traces.errors import InvariantError

F = TypeVar("F", bound=Callable[..., Any])

HOME = Path(__file__).resolve().parent
SOURCES = ("engine/*.py", "clock.py", "scheduling/request.py")  # of code and its constants
ENTRIES = "simulator.engine.entries."
MOST_PROCESSES = 4
KINDS: dict[str, Any] = {"int": ctypes.c_int64, "bool": ctypes.c_int64, "None": None}


def compiled(function: F) -> F:
    """Mark a function for compilation; compiled code calls it."""
    function.__dict__["compiled"] = True
    return function


def load(function: F) -> F:
    """Machine code of an entry; takes seconds where none is cached yet."""
    *takes, gives = (KINDS[kind] for kind in function.__annotations__.values())
    address = _code().get_function_address(symbol_of(function))
    return cast(F, ctypes.CFUNCTYPE(gives, *takes)(address))


def symbol_of(function: Callable[..., Any]) -> str:
    """Name of a function's machine code."""
    return f"{function.__module__}.{function.__qualname__}"


@cache
def _code() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(_object(machine, features)))
    engine.finalize_object()
    return engine


def _object(machine: Any, features: str) -> bytes:
    """The object file, from the cache or made and put there."""
    digest = blake2b(f"{llvmlite.__version__} {machine.triple} {features}".encode(), digest_size=12)
    for pattern in SOURCES:
        for file in sorted(HOME.parent.glob(pattern)):
            digest.update(file.read_bytes())
    name = f"engine-{digest.hexdigest()}.o"
    for place in _places():
        with suppress(OSError):
            return (place / name).read_bytes()
    made: bytes = machine.emit_object(_optimised(machine))
    for place in _places():
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            _write(place / name, made)
            break
    return made


def _optimised(machine: Any) -> Any:
    """The engine as one LLVM module, optimised as a whole."""
    parts = _translated()
    module = llvm.parse_assembly(parts.pop())
    while parts:
        module.link_in(llvm.parse_assembly(parts.pop()))
    for function in module.functions:
        if not function.is_declaration and not function.name.startswith(ENTRIES):
            function.linkage = "internal"
    tuning = llvm.create_pipeline_tuning_options(speed_level=1)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return module


def _translated() -> list[str]:
    """LLVM assembly of all functions, by processes of their own: they share the work.

    numba stays out of this process, and scipy, whose BLAS it would look for, out of theirs.
    """
    shares = min(MOST_PROCESSES, os.cpu_count() or 1)
    code = "import sys; sys.modules['scipy'] = None; from simulator.engine import translate; "
    paths = [str(HOME.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "NUMBA_OPT": "0", "PYTHONPATH": os.pathsep.join(paths)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code} translate.main({share}, {shares})"],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for share in range(shares)
    ]
    answers = [process.communicate()[0] for process in processes]
    for process in processes:
        if process.returncode:
            raise InvariantError(
                f"the engine cannot be compiled: exit {process.returncode} (above)"
            )
    return [part for answer in answers for part in json.loads(answer)]


def _write(file: Path, content: bytes) -> None:
    """At once: another process may be looking for it."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        part.write(content)
    Path(part.name).replace(file)


def _places() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given)
    yield HOME / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "frontier"
    yield Path(tempfile.gettempdir()) / f"frontier-{os.getuid()}"
