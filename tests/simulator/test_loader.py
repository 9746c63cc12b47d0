"""The engine's own loader: the same results as LLVM's, and no crash on what it does not know."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from random_worlds import random_world
from test_translate import FUNCTIONS, reals
from worlds import run_demand

from simulator.engine import build, llvm
from simulator.engine.build import symbol_of
from simulator.engine.loader import (
    OTHER_RELOCATIONS,
    R_X86_64_64,
    RELOCATIONS,
    SECTION,
    Code,
    UnknownObject,
    _sections,
)
from simulator.engine.translate import assembly
from simulator.fleet import CompiledFleet

WORLDS = 40


@pytest.fixture(scope="module")
def content() -> bytes:
    return llvm.machine_code(assembly(FUNCTIONS))


def call_reals(code: object, x: float, y: float, n: int) -> float:
    double = ctypes.c_double
    address = code.get_function_address(symbol_of(reals))  # type: ignore[attr-defined]
    found: float = ctypes.CFUNCTYPE(double, double, double, ctypes.c_int64)(address)(x, y, n)
    return found


def test_the_same_bits(content: bytes) -> None:
    """Of functions of the C library too, which each loader looks up itself."""
    own, other, rng = Code(content), llvm.load(content), random.Random(1)
    for _ in range(1000):
        given = rng.uniform(-1e6, 1e6), rng.uniform(-1e3, 1e3), rng.randrange(-(1 << 40), 1 << 40)
        one, two = (struct.pack("d", call_reals(code, *given)) for code in (own, other))
        assert one == two


def test_the_same_simulations(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(WORLDS):
        world = random_world(seed)
        own = run_demand(world.demand(), CompiledFleet, **world.how)
        with monkeypatch.context() as patch:
            other = llvm.load(build._object())
            patch.setattr(build, "_code", lambda code=other: code)
            for name, table in run_demand(world.demand(), CompiledFleet, **world.how).items():
                assert table.equals(own[name]), f"{name} of {world}"


def test_the_engine_needs_nothing_else() -> None:
    """On the machines it is for, the loader knows all of the engine's object."""
    assert isinstance(build._code(), Code)


def test_code_is_not_writable(content: bytes) -> None:
    code = Code(content)
    at = code.get_function_address(symbol_of(reals))
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [([int(end, 16) for end in line[0].split("-")], line[1]) for line in lines]
    assert [mode for (start, end), mode in spans if start <= at < end] == ["r-xp"]


def test_what_is_no_object_is_refused(content: bytes) -> None:
    """Wherever it ends, of another machine, or with other bytes."""
    for length in [*range(200), *range(200, len(content), 37)]:
        with pytest.raises(UnknownObject):
            Code(content[:length])
    for at in range(7):  # magic number, class, byte order, version
        with pytest.raises(UnknownObject, match="no object of x86-64 Linux"):
            Code(content[:at] + b"\xff" + content[at + 1 :])
    rng = random.Random(1)
    for _ in range(3000):
        at = rng.randrange(len(content))
        with suppress(UnknownObject):
            Code(content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :])
    arm = content[:18] + struct.pack("<H", 183) + content[20:]
    with pytest.raises(UnknownObject, match="no object of x86-64 Linux"):
        Code(arm)


CALLING = """
declare i64 @NAME(i64) nounwind
define i64 @called(i64 %x) nounwind {
  %y = call i64 @NAME(i64 %x)
  %z = add i64 %y, 1
  ret i64 %z
}
"""


def test_another_relocation_is_refused() -> None:
    """An address relative to the code (R_X86_64_PC32), say."""
    calling = llvm.machine_code(CALLING.replace("NAME", "sysconf"))
    code = Code(calling)
    called = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code.get_function_address("called"))
    assert called(os.sysconf_names["SC_PAGESIZE"]) == mmap.PAGESIZE + 1
    sections = _sections(calling)
    (relocations,) = sections[sections["type"] == RELOCATIONS]
    kind = int(relocations["offset"]) + 8
    assert calling[kind] == R_X86_64_64
    with pytest.raises(UnknownObject, match="relocation of type 2"):
        Code(calling[:kind] + b"\x02" + calling[kind + 1 :])
    (index,) = np.flatnonzero(sections["type"] == RELOCATIONS)
    at = calling.index(sections[index].tobytes()) + SECTION.fields["type"][1]
    without_addends = calling[:at] + bytes([OTHER_RELOCATIONS]) + calling[at + 1 :]
    with pytest.raises(UnknownObject, match="section of type 9"):
        Code(without_addends)


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(UnknownObject, match="no function 'nowhere_to_be_found'"):
        Code(llvm.machine_code(CALLING.replace("NAME", "nowhere_to_be_found")))
