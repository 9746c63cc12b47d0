"""The pages' commands, run as they stand there: each prints what the page says it prints."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from replay.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = Path("reports") / "examples"
NUMBER = re.compile(r"\d[\d,]*\.?\d*")
CLOSE = 0.02  # another processor's arithmetic may move a fit's last digits


def commands(page: str) -> list[tuple[str, list[str]]]:
    """Each ``$`` command of the page's console blocks with the lines it is said to print."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line.rstrip())
    return found


def alike(said: str, printed: str) -> bool:
    """Equal but for numbers, and these within ``CLOSE`` of each other."""
    if NUMBER.sub("#", said).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(said), NUMBER.findall(printed), strict=True)
    numbers = [[float(n.replace(",", "").rstrip(".")) for n in pair] for pair in pairs]
    return all(abs(a - b) <= CLOSE * max(a, b) for a, b in numbers)


def holds(said: list[str], printed: list[str]) -> bool:
    """Whether the lines match in order, ``...`` standing for any number of them."""
    if not said:
        return not printed
    if said[0] == "...":
        return any(holds(said[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and alike(said[0], printed[0]) and holds(said[1:], printed[1:])


@pytest.mark.parametrize("page", ["whatif", "pd"])
def test_every_number_is_a_command_s(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "traces").symlink_to(ROOT / "traces")
    shutil.copytree(ROOT / EXAMPLES, tmp_path / EXAMPLES)  # its files name runs/ beside them
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    steps = commands((EXAMPLES / page / "README.md").read_text())
    assert len(steps) >= 5
    for command, said in steps:
        words = shlex.split(command)
        assert words[0] == "frontier"
        more = ["--jobs", "1"] if words[1] == "whatif" else []
        result = CliRunner().invoke(main, [*words[1:], *more])
        assert result.exit_code == 0, result.output
        printed = [line.rstrip() for line in result.stdout.splitlines()]
        assert holds(said, printed), f"{command}\n" + "\n".join(printed)


def test_a_wrong_number_would_be_noticed() -> None:
    assert alike("TTFT p99 441.9 ms", "TTFT  p99 442.5 ms")
    assert not alike("TTFT p99 441.9 ms", "TTFT p99 461.9 ms")
    assert not alike("Best of 60 points", "Worst of 60 points")
    assert holds(["a", "...", "c"], ["a", "b", "b", "c"])
    assert not holds(["a", "c"], ["a", "b", "c"])
