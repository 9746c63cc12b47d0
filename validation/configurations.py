"""Configurations that a decision is made over: what was measured and simulated of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traces.bundle import Bundle, bundle_hash, is_bundle, read_bundle
from traces.errors import TraceError
from traces.metrics import Floats
from validation import provenance
from validation.errors import STATISTICS, statistics
from validation.noise import spread
from validation.pairing import pair, rows_with_ids
from validation.samples import View, finite

MEASURED, SIMULATED = "measured", "simulated"
_UNUSED = ("block_hashes",)


@dataclass(frozen=True, slots=True)
class Objective:
    """A statistic of a metric; less of it is better, of throughput more."""

    metric: str
    statistic: str = "mean"

    @property
    def name(self) -> str:
        return f"{self.metric}.{self.statistic}"

    @property
    def sign(self) -> int:
        """1 where less is better, -1 where more is."""
        return -1 if self.metric == "throughput" else 1


OBJECTIVES = (
    Objective("ttft"), Objective("ttft", "p99"), Objective("tpot"), Objective("tpot", "p99"),
    Objective("e2e"), Objective("e2e", "p99"), Objective("throughput"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Configuration:
    """One configuration: values of each metric in each measured run and in the simulated one.

    ``fitted`` says that the operator profile had seen one of the measured runs.
    """

    name: str
    hashes: list[str]
    measured: list[dict[str, Floats]]
    simulated: dict[str, Floats]
    fitted: bool | None

    def value(self, objective: Objective) -> tuple[float, float, float | None]:
        """Measured (mean over the runs), simulated, and the runs' noise as a fraction."""
        runs = [_statistic(run[objective.metric], objective) for run in self.measured]
        simulated = _statistic(self.simulated[objective.metric], objective)
        return float(np.mean(runs)), simulated, spread(runs)


def _statistic(values: Floats, objective: Objective) -> float:
    return float(statistics(finite(values))[STATISTICS.index(objective.statistic)])


def read_configurations(
    path: Path, progress: Callable[[str], None] = lambda _: None
) -> list[Configuration]:
    """The configurations under ``path``: ``<name>/measured`` and ``<name>/simulated``.

    More runs of the real system lie beside them as ``measured-2`` and so on. Raises
    TraceError with all faults at once, among them fewer than two configurations.
    """
    if not path.is_dir():
        raise TraceError(f"{path}: no such directory")
    found, faults = [], []
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        runs = sorted(p for p in folder.glob(f"{MEASURED}*") if is_bundle(p))
        missing = [n for n in (MEASURED, SIMULATED) if not is_bundle(folder / n)]
        if not runs and SIMULATED in missing:
            continue
        if missing:
            faults.append(f"{folder}: no bundle {' and no '.join(missing)}")
            continue
        progress(f"reading {folder.name}")
        try:
            found.append(_read(folder, runs))
        except TraceError as error:
            faults += error.faults
    if not faults and len(found) < 2:
        faults = [f"{path}: {len(found)} configurations (<name>/measured and <name>/simulated)"]
    if faults:
        raise TraceError(faults)
    return found


def _read(folder: Path, runs: Sequence[Path]) -> Configuration:
    real = [read_bundle(run, eager=False, skip=_UNUSED) for run in runs]
    simulated = read_bundle(folder / SIMULATED, eager=False, skip=_UNUSED)
    pairing = pair(real[0], simulated)
    digests = [bundle_hash(b) for b in real]
    rows = [pairing.measured, *(rows_with_ids(b, pairing.ids) for b in real[1:])]
    for bundle, found in zip(real, rows, strict=True):
        if not len(found):
            raise TraceError(f"{bundle.path}: no request in common with {real[0].path}")
    holdout = provenance.holdout(provenance.profile(simulated)["fitted_on"], digests)
    return Configuration(
        folder.name,
        digests,
        [_values(b, r) for b, r in zip(real, rows, strict=True)],
        _values(simulated, pairing.simulated),
        None if holdout is None else not holdout,
    )


def _values(bundle: Bundle, rows: Any) -> dict[str, Floats]:
    wanted = {o.metric for o in OBJECTIVES}
    return {name: v for name, v in View(bundle, rows).values.items() if name in wanted}
