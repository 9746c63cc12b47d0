"""``frontier validate``: read the bundles, compare them, write every report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from reports import words, write_all
from reports.console import error_table, ladder_table, open_console
from reports.ladder import sentences
from traces.bundle import Bundle, read_bundle
from traces.errors import ConfigError, TraceError
from validation.bars import Judgement, load_bars
from validation.comparison import compared
from validation.ladder import PairSimulator, Simulator, build_ladder
from validation.provenance import refuse_leak
from validation.scorecard import Scorecard, score

_USED = ("requests", "steps", "step_requests")
_UNUSED = ("block_hashes",)


def run_validate(
    measured: Path,
    simulated: Path,
    out: Path,
    *,
    repeats: Sequence[Path] = (),
    bars: Path | None = None,
    allow_vantage_mix: bool = False,
    require_holdout: bool = False,
    simulator: Callable[[], Simulator | PairSimulator] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Scorecard, list[Judgement]]:
    """Validate one bundle against another and write the reports under ``out``.

    ``simulator`` makes what the attribution ladder runs; without it there is no ladder.
    Raises TraceError with the faults of all bundles at once, or if ``require_holdout`` and
    the simulation was fitted on what it is held against; ConfigError for bad bars.
    """
    limits = load_bars(bars) if bars is not None else None
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: not a directory")
    progress("reading bundles")
    bundles = _read([measured, simulated, *repeats], skip=() if simulator else _UNUSED)
    progress("comparing")
    comparison = compared(bundles[0], bundles[1], bundles[2:], allow_vantage_mix=allow_vantage_mix)
    scorecard = score(comparison)
    if require_holdout:
        refuse_leak(scorecard.provenance)
    if simulator is not None:
        ladder = build_ladder(bundles[0], bundles[1], simulator(), progress)
        scorecard = replace(scorecard, ladder=ladder)
    progress("writing reports")
    return scorecard, write_all(scorecard, comparison, out, limits)


def print_outcome(scorecard: Scorecard, judgements: Sequence[Judgement], out: Path) -> None:
    """Print the error table, the verdict and where the reports are."""
    console = open_console()
    console.print(error_table(scorecard))
    if scorecard.ladder:
        console.print(ladder_table(scorecard))
        for line in sentences(scorecard.ladder):
            console.print(line, markup=False, soft_wrap=True)
    for line in (words.verdict(scorecard, judgements), *words.headline(scorecard)):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"{out / 'report.html'}", markup=False, soft_wrap=True)


def _read(paths: Sequence[Path], skip: Sequence[str]) -> list[Bundle]:
    """Open bundles and check the tables that validation uses; faults of all at once."""
    bundles: list[Bundle] = []
    faults: list[str] = []
    for path in paths:
        try:
            bundle = read_bundle(path, eager=False, skip=skip)
        except TraceError as error:
            faults += error.faults
            continue
        bundles.append(bundle)
        for name in _USED:
            try:
                if name == "requests" or name in bundle:
                    bundle.table(name)
            except TraceError as error:
                faults += error.faults
    if faults:
        raise TraceError(faults)
    return bundles
