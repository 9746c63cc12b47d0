"""Machine code from an object file into memory: all that a warm start needs of a linker.

LLVM has one for every machine, in a library of which a process touches up to 100 MiB. This one
knows what LLVM writes for the engine on x86-64 Linux: code and constants, 64-bit addresses in
them, functions of the C library by name (System V ABI, AMD64 supplement 1.0, chapter 4). What
it does not know it refuses.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import FrontierError

ELF = b"\x7fELF\x02\x01\x01"  # of 64 bits, little-endian
RELOCATABLE, X86_64 = 1, 62  # the header's type and machine
CONTENT, SYMBOLS, RELOCATIONS, OTHER_RELOCATIONS = 1, 2, 4, 9  # a section's type
WRITE, ALLOC, THREAD_LOCAL = 1, 2, 0x400  # its flags
UNDEFINED, RESERVED = 0, 0xFF00  # a symbol's section
GLOBAL_FUNCTION = 1 << 4 | 2  # its binding and type
R_X86_64_64 = 1  # a relocation's type: the symbol's address plus the addend
ADDRESS_BYTES = 8
Records = npt.NDArray[Any]
Places = list[int | None]  # of sections in memory; None if not loaded


def _record(**fields: str) -> np.dtype[Any]:
    return np.dtype([(name, f"<{kind}") for name, kind in fields.items()])


HEADER = _record(
    ident="V16", type="u2", machine="u2", version="u4", entry="u8", segments_at="u8",
    sections_at="u8", flags="u4", size="u2", segment_size="u2", segments="u2", section_size="u2",
    sections="u2", names="u2",
)  # fmt: skip
SECTION = _record(
    name="u4", type="u4", flags="u8", address="u8", offset="u8", size="u8", link="u4", info="u4",
    align="u8", entry_size="u8",
)  # fmt: skip
SYMBOL = _record(name="u4", kind="u1", visibility="u1", section="u2", value="u8", size="u8")
RELOCATION = _record(offset="u8", type="u4", symbol="u4", addend="i8")


class UnknownObject(FrontierError):
    """An object file that holds something not known here, or no object file."""


class Code:
    """Functions of an object file, in memory as long as this lives. Raises UnknownObject."""

    def __init__(self, content: bytes) -> None:
        try:
            sections = _sections(content)
            places, size = _lay_out(sections)
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for section, place in zip(sections, places, strict=True):
                if place is not None:
                    memory[place : place + int(section["size"])] = _bytes(content, section)
            symbols = _symbols(content, sections)
            found = [_address(*symbol, base, places) for symbol in symbols]
            for section in sections[sections["type"] == RELOCATIONS]:
                place, target = places[section["info"]], sections[section["info"]]
                if place is not None:
                    at = memoryview(memory)[place : place + int(target["size"])]
                    _relocate(at, np.frombuffer(_bytes(content, section), RELOCATION), found)
        except (ValueError, IndexError, OverflowError, OSError) as error:
            raise UnknownObject(f"not sound: {error}") from None
        _make_executable(base, size)
        self._memory = memory
        self._functions = {
            name: address
            for (kind, _, _, name), address in zip(symbols, found, strict=True)
            if kind == GLOBAL_FUNCTION and address is not None
        }

    def get_function_address(self, name: str) -> int:
        """Where a function is, as LLVM's own loader gives it. Raises KeyError."""
        return self._functions[name]


def _sections(content: bytes) -> Records:
    header = np.frombuffer(content, HEADER, 1)[0]
    kind = content[: len(ELF)], int(header["type"]), int(header["machine"])
    if sys.platform != "linux" or kind != (ELF, RELOCATABLE, X86_64):
        raise UnknownObject("no object of x86-64 Linux")
    return np.frombuffer(content, SECTION, int(header["sections"]), int(header["sections_at"]))


def _lay_out(sections: Records) -> tuple[Places, int]:
    """A place for each section that is loaded, and the size of all."""
    places: Places = []
    end = 0
    for kind, flags, size, align in sections[["type", "flags", "size", "align"]].tolist():
        loaded = flags & ALLOC
        known = kind == CONTENT and align <= mmap.PAGESIZE and not flags & (WRITE | THREAD_LOCAL)
        if (loaded and not known) or kind == OTHER_RELOCATIONS:
            raise UnknownObject(f"section of type {kind}, flags {flags:#x}, align {align}")
        start = -(-end // max(align, 1)) * max(align, 1)
        places.append(start if loaded else None)
        end = start + size if loaded else end
    return places, end


def _symbols(content: bytes, sections: Records) -> list[tuple[int, int, int, str]]:
    """Kind, section, value and name of each symbol."""
    (table,) = sections[sections["type"] == SYMBOLS]
    names = _bytes(content, sections[table["link"]])
    return [
        (kind, section, value, names[at : names.index(b"\0", at)].decode())
        for at, kind, _, section, value, _ in np.frombuffer(_bytes(content, table), SYMBOL).tolist()
    ]


def _address(_: int, section: int, value: int, name: str, base: int, places: Places) -> int | None:
    """Of a symbol; None if it is in nothing that is loaded."""
    if section == UNDEFINED and name:
        try:
            outside = ctypes.CDLL(None)[name]
        except AttributeError:
            raise UnknownObject(f"no function {name!r} in this process") from None
        return ctypes.cast(outside, ctypes.c_void_p).value
    place = None if section >= RESERVED else places[section]
    return None if place is None else base + place + value


def _relocate(section: memoryview, relocations: Records, found: list[int | None]) -> None:
    for offset, kind, symbol, addend in relocations.tolist():
        address = found[symbol]
        if kind != R_X86_64_64 or address is None:
            raise UnknownObject(f"relocation of type {kind} to symbol {symbol}")
        absolute = (address + addend).to_bytes(ADDRESS_BYTES, "little")
        section[offset : offset + ADDRESS_BYTES] = absolute


def _make_executable(base: int, size: int) -> None:
    """And no longer writable."""
    protection = mmap.PROT_READ | mmap.PROT_EXEC
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(base), ctypes.c_size_t(size), protection):
        raise UnknownObject("this process may not make memory executable")


def _bytes(content: bytes, section: Any) -> bytes:
    start, size = int(section["offset"]), int(section["size"])
    if start + size > len(content):
        raise UnknownObject(f"a section ends at byte {start + size} of {len(content)}")
    return content[start : start + size]
