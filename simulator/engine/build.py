"""Machine code for the engine: compiled once, kept on disk.

``compiled`` marks a function. ``load`` gives the machine code of those in ``entries.py``;
where there is none yet for this machine, ``translate.py`` makes LLVM assembly of them and all
they call, and LLVM optimises it as a whole.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import llvmlite.binding as llvm

F = TypeVar("F", bound=Callable[..., Any])

HOME = Path(__file__).resolve().parent
SOURCES = ("engine/*.py", "clock.py", "scheduling/request.py")  # of code and its constants
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
    module = llvm.parse_assembly(_assembly())
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=1)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return module


def _assembly() -> str:
    from simulator.engine import entries, translate  # which import this

    functions = vars(entries).values()
    own = [f for f in functions if getattr(f, "__module__", "") == entries.__name__]
    return translate.assembly(own)


def _write(file: Path, content: bytes) -> None:
    """At once: another process may be looking for it."""
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as part:
        part.write(content)
    Path(part.name).replace(file)


def _places() -> Iterator[Path]:
    if given := os.environ.get("NUMBA_CACHE_DIR"):  # where numba keeps that of operators/trees.py
        yield Path(given)
    yield HOME / "__pycache__"
    yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "frontier"
    yield Path(tempfile.gettempdir()) / f"frontier-{os.getuid()}"
