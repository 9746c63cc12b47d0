"""Reports of validations on the shipped captures, one of each kind of deployment.

python tests/e2e/sample_reports.py OUT     # the pictures of the README (make pictures)
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from replay.cli import main
from traces.samples import HOME as SAMPLES
from traces.samples import sample_runs

WIDTH, HEIGHT = 1200, 860


def frontier(*arguments: object) -> None:
    """Run one command in this process. Raises RuntimeError if it fails."""
    done = CliRunner().invoke(main, [str(a) for a in arguments])
    if done.exit_code:
        raise RuntimeError(f"frontier {arguments[0]}: {done.output}") from done.exception


def at_another_load(seen: str, held: str) -> Callable[[Path], Path]:
    """Fit on the captures of one group, hold the simulation against those of another."""

    def make(home: Path) -> Path:
        measured, *repeats = sample_runs(held)
        more = [part for repeat in repeats for part in ("--repeats", repeat)]
        frontier("fit", *sample_runs(seen), "--out", home / "operators")
        frontier("replay", measured, "--operators", home / "operators", "--record", "steps",
                 "--out", home / "simulated")  # fmt: skip
        frontier("validate", measured, home / "simulated", *more, "--ladder",
                 "--out", home / "report")  # fmt: skip
        return home / "report"

    return make


def attention_ffn(home: Path) -> Path:
    """Two micro-batches predicted from runs of one, held against the testbed's."""
    runs = SAMPLES / "attention-ffn"
    frontier("pipeline", runs, "--simulated", home / "simulated")
    measured, *repeats = sorted(runs.glob("*/*/m2-*"))
    more = [part for repeat in repeats for part in ("--repeats", repeat)]
    frontier("validate", measured, home / "simulated" / measured.relative_to(runs), *more,
             "--out", home / "report")  # fmt: skip
    return home / "report"


KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    # name: (the group of captures it needs, what makes the report)
    "dense": ("dense-high", at_another_load("dense-low", "dense-high")),
    "moe": ("moe-high", at_another_load("moe-low", "moe-high")),
    "dp-ep": ("moe-dp2ep2-high", at_another_load("moe-dp2ep2-low", "moe-dp2ep2-high")),
    "prefill-decode": ("dense-pd-high", at_another_load("dense-pd-low", "dense-pd-high")),
    "attention-ffn": ("attention-ffn", attention_ffn),
}


def shipped() -> list[str]:
    """The kinds whose captures are there."""
    return [kind for kind, (group, _) in KINDS.items() if (SAMPLES / group).is_dir()]


def take_pictures(out: Path) -> None:
    """Write ``out/<kind>.webp``: the top of each report."""
    from chrome import Chrome

    out.mkdir(parents=True, exist_ok=True)
    for kind in shipped():
        with tempfile.TemporaryDirectory() as scratch:
            report = KINDS[kind][1](Path(scratch))
            with Chrome(Path(scratch) / "browser", width=WIDTH, height=HEIGHT) as chrome:
                chrome.open(report / "report.html")
                chrome.wait("document.querySelector('.js-plotly-plot') !== null", "a chart")
                (out / f"{kind}.webp").write_bytes(chrome.picture())


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]))
