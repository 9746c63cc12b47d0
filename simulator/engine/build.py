"""Machine code for the engine: compiled once, kept on disk.

``compiled`` marks a function. ``load`` gives the machine code of those in ``entries.py``;
where there is none yet for this machine, ``translate.py`` makes LLVM assembly of them and all
they call, and LLVM optimises it as a whole.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast

from simulator.engine.loader import Code, UnknownObject

F = TypeVar("F", bound=Callable[..., Any])

HOME = Path(__file__).resolve().parent
SOURCES = ("engine/*.py", "clock.py", "scheduling/request.py")  # of code and its constants
SEAL_BYTES = 16  # a checksum behind each file of the cache
KINDS: dict[str, Any] = {"int": ctypes.c_int64, "bool": ctypes.c_int64, "None": None}


def compiled(function: F) -> F:
    """Mark a function for compilation; compiled code calls it."""
    function.__dict__["compiled"] = True
    return function


def load(function: F, *, brief: bool = False) -> F:
    """Machine code of an entry; takes seconds where none is cached yet.

    Other threads run meanwhile, unless a call is so ``brief`` that letting them takes longer.
    """
    *takes, gives = (KINDS[kind] for kind in function.__annotations__.values())
    address = _code().get_function_address(symbol_of(function))
    prototype = ctypes.PYFUNCTYPE if brief else ctypes.CFUNCTYPE
    return cast(F, prototype(gives, *takes)(address))


def symbol_of(function: Callable[..., Any]) -> str:
    """Name of a function's machine code."""
    return f"{function.__module__}.{function.__qualname__}"


@cache
def _code() -> Any:
    content = _object()
    try:
        return Code(content)
    except UnknownObject:
        from simulator.engine import llvm

        return llvm.load(content)


def _object() -> bytes:
    """The object file, from the cache or made and put there."""
    name = f"engine-{_digest()}.o"
    for place in _places():
        with suppress(OSError):
            if kept := _unsealed((place / name).read_bytes()):
                return kept
    made = _made(_assembly())
    for place in _places():
        with suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            _write(place / name, made + _seal(made))
            break
    return made


def _made(assembly: str) -> bytes:
    """By a process of its own where one can be had: the memory that LLVM takes goes with it."""
    import subprocess

    command = [sys.executable, "-P", str(HOME / "llvm.py")]
    with suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(command, input=assembly.encode(), capture_output=True, check=True)
        return done.stdout
    from simulator.engine import llvm

    return llvm.machine_code(assembly)


def _digest() -> str:
    """Of all that machine code depends on."""
    digest = blake2b(f"{sys.platform} {os.uname().machine} ".encode(), digest_size=12)
    if library := find_spec("llvmlite"):
        with suppress(OSError):  # its version, without importing it
            digest.update(Path(str(library.origin)).with_name("_version.py").read_bytes())
    for pattern in SOURCES:
        for file in sorted(HOME.parent.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _seal(content: bytes) -> bytes:
    return blake2b(content, digest_size=SEAL_BYTES).digest()


def _unsealed(kept: bytes) -> bytes:
    """What a file of the cache holds; nothing if it is broken."""
    content, seal = kept[:-SEAL_BYTES], kept[-SEAL_BYTES:]
    return content if seal == _seal(content) else b""


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
    shared = Path(tempfile.gettempdir()) / f"frontier-{os.getuid()}"
    if not shared.exists() or shared.lstat().st_uid == os.getuid():  # nobody else's code is run
        yield shared
