"""The engine's machine code: made once, kept where there is a place for it, never stale."""

from __future__ import annotations

import ast
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from simulator.engine import build

PART = """
define i64 @"simulator.engine.entries.answer"() {
  %made = call i64 @"helper"()
  ret i64 %made
}
define i64 @"helper"() { ret i64 42 }
"""


@pytest.fixture
def machine() -> object:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine()


def test_machine_code_is_kept_in_the_first_place_there_is(
    machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a file"
    file.touch()
    places = [file / "no folder can be here", tmp_path / "second", tmp_path / "third"]
    translated = []
    monkeypatch.setattr(build, "_places", lambda: iter(places))
    monkeypatch.setattr(build, "_assembly", lambda: translated.append(1) or PART)
    made = build._object(machine, "features")
    assert [p.read_bytes() for p in places[1].glob("engine-*.o")] == [made]
    assert not places[2].exists()
    assert build._object(machine, "features") == made
    assert len(translated) == 1
    build._object(machine, "other features")
    assert len(translated) == 2
    assert len([*places[1].iterdir()]) == 2


def test_nowhere_to_keep_it_is_no_failure(
    machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(build, "_places", lambda: iter([tmp_path / "file" / "none"]))
    monkeypatch.setattr(build, "_assembly", lambda: PART)
    assert build._object(machine, "features")


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
    python_only = {"assembly", "build", "memory", "records", "translate"}
    for file in build.HOME.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if file.stem not in python_only and isinstance(node, ast.ImportFrom):
                module = str(node.module)
                assert not module.startswith("simulator") or module in known, (file.name, module)
