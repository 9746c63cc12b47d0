"""Same seed, same bytes, whatever PYTHONHASHSEED."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "synth --out {0}/s --requests 200 --turns lognormal:3,0.5,1,8 --prefixes 3 --prefix-share 0.5 "
    "--arrivals gamma:3 --seed 5",
    "convert {0}/s --to mooncake --out {0}/m.jsonl.gz",
    "convert {0}/m.jsonl.gz --to bundle --out {0}/b",
    "convert {0}/stamps.jsonl --to bundle --out {0}/e1",
    "convert {0}/later.jsonl --to bundle --out {0}/e2",
    "merge {0}/e1 {0}/e2 --out {0}/merged",
)
STAMPS = (
    '{{"request_id": "{0}", "input_toks": 5, "output_toks": 3, "arrival_time": 1700000000.{1},'
    '"queued_ts": 10.{1}, "scheduled_ts": 11, "first_token_ts": 12, "last_token_ts": 13}}\n'
)


def run(home: Path, hash_seed: str) -> dict[str, bytes]:
    """Contents of all files that the commands write, by name."""
    home.mkdir()
    (home / "stamps.jsonl").write_text(STAMPS.format("a", 1) + STAMPS.format("b", 2))
    (home / "later.jsonl").write_text(STAMPS.format("c", 3))
    script = "import sys; from replay.cli import main\n"
    script += "for c in sys.argv[1:]: main(['traces', *c.split()], standalone_mode=False)"
    subprocess.run(
        [sys.executable, "-c", script, *(c.format(home) for c in COMMANDS)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
        capture_output=True,
    )
    files = [f for f in home.rglob("*") if f.is_file()]
    return {str(f.relative_to(home)): f.read_bytes() for f in files}


def test_bundles_and_traces(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", "0"), run(tmp_path / "two", "12345")
    assert sorted(one) == sorted(two)
    assert len(one) == 2 + 1 + 2 * 5  # two sources, one trace, five bundles of two files
    for name, content in one.items():
        assert content == two[name], name
