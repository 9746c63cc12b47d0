"""The engine's machine code: made once, kept where there is a place for it, never stale."""

from __future__ import annotations

import ast
import ctypes
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from simulator.engine import build
from simulator.engine.loader import Code, UnknownObject

PART = """
define i64 @"simulator.engine.entries.answer"() nounwind {
  %made = call i64 @"helper"()
  ret i64 %made
}
define i64 @"helper"() nounwind { ret i64 42 }
"""


NAME = "simulator.engine.entries.answer"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A place that cannot be, and two that can; there is no machine code in them."""
    (tmp_path / "a file").touch()
    found = [tmp_path / "a file" / "no folder can be here", tmp_path / "b", tmp_path / "c"]
    monkeypatch.setattr(build, "_places", lambda: iter(found))
    return found


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made anew, of a small module in place of the engine."""
    translated: list[str] = []
    monkeypatch.setattr(build, "_assembly", lambda: translated.append(PART) or PART)
    return translated


def answer(content: bytes) -> int:
    code = Code(content)
    answered: int = ctypes.CFUNCTYPE(ctypes.c_int64)(code.get_function_address(NAME))()
    return answered


def test_machine_code_is_kept_in_the_first_place_there_is(
    places: list[Path], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build._object()
    assert len([*places[1].glob("engine-*.o")]) == 1
    assert not places[2].exists()
    assert build._object() == first
    assert len(made) == 1
    monkeypatch.setattr(build, "_digest", lambda: "of another machine")
    build._object()
    assert len(made) == 2
    assert len([*places[1].iterdir()]) == 2


def test_nowhere_to_keep_it_is_no_failure(
    places: list[Path], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_places", lambda: iter(places[:1]))
    assert answer(build._object()) == 42


def test_without_a_process_of_its_own_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = build._made(PART)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert build._made(PART) == made
    assert answer(made) == 42


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: b"",
        lambda kept: kept[:7],
        lambda kept: kept[: len(kept) // 2],
        lambda kept: kept[:-1],
        lambda kept: kept[: -build.SEAL_BYTES],
        lambda kept: kept[:99] + bytes([kept[99] ^ 1]) + kept[100:],
        lambda kept: Path(sys.executable).read_bytes(),
    ],
    ids=["empty", "a few bytes", "half", "a byte short", "unsealed", "a bit", "another file"],
)
def test_a_broken_file_is_made_anew(
    places: list[Path], made: list[str], spoil: Callable[[bytes], bytes]
) -> None:
    sound = build._object()
    (kept,) = places[1].iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(spoil(whole))
    assert build._object() == sound
    assert kept.read_bytes() == whole
    assert len(made) == 2


def test_a_place_that_is_only_read(
    places: list[Path], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is used; what is broken there is made anew elsewhere."""
    sound = build._object()
    (kept,) = places[1].iterdir()
    write = build._write

    def only_read(file: Path, content: bytes) -> None:
        if file.parent == places[1]:
            raise PermissionError(errno.EROFS, "read-only file system", str(file))
        write(file, content)

    monkeypatch.setattr(build, "_write", only_read)
    assert build._object() == sound
    assert len(made) == 1
    kept.write_bytes(b"broken")
    assert build._object() == sound
    assert (places[2] / kept.name).is_file()
    assert build._object() == sound
    assert len(made) == 2


PROCESS = f"""
import sys
from pathlib import Path
from simulator.engine import build
build._places = lambda: iter([Path(sys.argv[1])])
build._assembly = lambda: {PART!r}
def answer() -> int: ...
answer.__module__ = "simulator.engine.entries"
answer.__annotations__ = {{"return": "int"}}
print(build.load(answer)(), "llvmlite" in sys.modules)
"""


def test_processes_that_start_at_once(tmp_path: Path) -> None:
    """Each has the machine code made, one's is kept, and none has LLVM in its own memory."""
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [each.communicate(timeout=100)[0].split() for each in running] == [["42", "False"]] * 4
    assert len([*tmp_path.iterdir()]) == 1
    after = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert after.stdout.split() == ["42", "False"]


def test_what_the_loader_does_not_know_llvm_loads(
    places: list[Path], made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_assembly", lambda: "@kept = global i64 42\n" + PART)
    with pytest.raises(UnknownObject, match="section of type 1, flags 0x"):
        Code(build._object())
    loaded = build._code.__wrapped__()  # in memory as long as this lives
    assert not isinstance(loaded, Code)
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(loaded.get_function_address(NAME))() == 42


def test_a_place_the_user_names_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert next(build._places()) == tmp_path


def test_the_cache_knows_every_source_that_the_code_depends_on() -> None:
    """What compiled modules import is in the digest, or old code would be run."""
    known = {
        "simulator." + ".".join(file.relative_to(build.HOME.parent).with_suffix("").parts)
        for pattern in build.SOURCES
        for file in build.HOME.parent.glob(pattern)
    }
    python_only = {"assembly", "build", "llvm", "loader", "memory", "records", "translate"}
    for file in build.HOME.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if file.stem not in python_only and isinstance(node, ast.ImportFrom):
                module = str(node.module)
                assert not module.startswith("simulator") or module in known, (file.name, module)


def test_code_in_a_folder_of_somebody_else_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    own = tmp_path / f"frontier-{build.os.getuid()}"
    own.mkdir()
    assert own in build._places()
    own.rename(tmp_path / "frontier-12345")
    monkeypatch.setattr(build.os, "getuid", lambda: 12345)
    assert tmp_path / "frontier-12345" not in build._places()
