"""``frontier fit --operators``: what kernels do not tell of a step, from captured requests.

Two constants are sought with which the replay of the captures has their mean TPOT and mean
TTFT: time added to every step, and to every request before it is queued. Each replay moves both
by what is missing (of TPOT by the secant of the last two). Requests are paired, so intervals
come from resampled blocks of their differences.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from replay.plan import Plan, load_step_time, make_plan
from replay.simulate import replay
from simulator.step_time.deployed import KERNELS
from simulator.step_time.overhead import OVERHEAD, Overhead, save_overhead
from simulator.step_time.tables import OperatorStepTime
from traces.bundle import Bundle, bundle_hash, claim_directory, read_bundle
from traces.errors import ConfigError, TraceError
from traces.load import load_workload
from traces.metrics import column, request_metrics

Floats = npt.NDArray[np.float64]
Say = Callable[[str], None]

CONSTANTS = ("step_s", "frontend_s")
ROUNDS = 6
CLOSE = 1e-3  # of the mean measured
BLOCK, RESAMPLES = 50, 1000  # requests that follow each other share the engine's state


@dataclass(slots=True)
class Missing:
    """Measured minus simulated, request by request, seconds ``(n,)``; NaN where not known."""

    tpot: Floats
    ttft: Floats


def fit_overhead(
    paths: Sequence[Path],
    profile: Path,
    deployment: Path | None,
    out: Path,
    progress: Say,
    *,
    first: int | None = None,
    constants: Sequence[str] = CONSTANTS,
) -> Overhead:
    """Fit, and write ``out``: the profile's kernels and models with ``overhead.yaml``.

    Whole captures are replayed; ``first`` holds only so many of their requests, by arrival, to
    what was measured. Constants that are not named stay 0. Raises ConfigError or TraceError for
    captures that cannot be replayed on the profile.
    """
    if not (profile / KERNELS).is_file():
        raise ConfigError(f"--operators {profile}: no {KERNELS} there")
    bundles = [read_bundle(path) for path in paths]
    plans = [make_plan(deployment or path, operators=profile) for path in paths]
    step_s, frontend_s, seen = 0.0, 0.0, []
    free, below = set(constants), dict.fromkeys(CONSTANTS, 0.0)
    for number in range(1, ROUNDS + 1):
        found = [
            _missing(b, path, plan, step_s, frontend_s, first, progress)
            for b, path, plan in zip(bundles, paths, plans, strict=True)
        ]
        tpot, ttft = (
            np.concatenate([getattr(m, name) for m in found]) for name in ("tpot", "ttft")
        )
        gap, late = float(np.nanmean(tpot)), float(np.nanmean(ttft))
        progress(
            f"round {number}: step {step_s * 1e3:.3f} ms, frontend {frontend_s * 1e3:.2f} ms: "
            f"{gap * 1e3:+.3f} ms TPOT and {late * 1e3:+.2f} ms TTFT missing"
        )
        seen.append((step_s, gap))
        moves = {
            "step_s": (step_s, gap * _pace(seen), abs(gap) / _mean(bundles, "tpot")),
            "frontend_s": (frontend_s, late, abs(late) / _mean(bundles, "ttft")),
        }
        if all(moves[name][2] < CLOSE for name in free):
            break
        for name in sorted(free):
            value, move, _ = moves[name]
            if value + move < 0:  # the other constant is to fit what is left with this one at 0
                below[name] = value + move
                free.remove(name)
        step_s = _moved(moves["step_s"], "step_s" in free, below["step_s"])
        frontend_s = _moved(moves["frontend_s"], "frontend_s" in free, below["frontend_s"])
    overhead = Overhead(
        plans[0].engine_version,
        plans[0].only.cluster.hardware,
        step_s,
        frontend_s,
        {
            name: [value + float(q) for q in _interval(gaps)]
            for name, value, gaps in (("step_s", step_s, tpot), ("frontend_s", frontend_s, ttft))
            if name in constants
        },
        [{"hash": bundle_hash(b), "name": b.path.name} for b in bundles],
        [
            f"{name}: the captures are faster than their kernels by {-value * 1e3:.3f} ms; "
            "0 is kept"
            for name, value in (("a step", below["step_s"]),
                                ("a request's start", below["frontend_s"]))
            if value < 0
        ],
    )  # fmt: skip
    claim_directory(out)
    for file in profile.iterdir():
        if file.is_file() and file.name != OVERHEAD:
            shutil.copyfile(file, out / file.name)
    save_overhead(overhead, out)
    return overhead


def _moved(move: tuple[float, float, float], free: bool, below: float) -> float:
    """Where a constant goes: moved, back to 0 for good, or where it is."""
    value, step, _ = move
    if free:
        return value + step
    return 0.0 if below < 0 else value


def _pace(seen: Sequence[tuple[float, float]]) -> float:
    """Seconds a step for each second of TPOT missing: 1 at first, then the secant's."""
    if len(seen) < 2:
        return 1.0
    (x0, y0), (x1, y1) = seen[-2:]
    return float(np.clip((x1 - x0) / (y0 - y1), 0.2, 2.0)) if y0 != y1 else 1.0


def _missing(
    bundle: Bundle, path: Path, plan: Plan, step_s: float, frontend_s: float, first: int | None,
    progress: Say,
) -> Missing:  # fmt: skip
    model, note = load_step_time(plan, progress=progress)
    assert isinstance(model, OperatorStepTime)
    model = model.with_overhead(step_s, frontend_s)
    manifest, tables = replay(load_workload(path), plan, record=(), step_time=(model, note))
    simulated = Bundle(path, manifest, tables)
    index = pc.index_in(
        bundle.requests.column("request_id"),
        simulated.requests.column("request_id").combine_chunks(),
    )
    known = np.asarray(index.is_valid())
    if first is not None:
        known[np.argsort(column(bundle.requests, "arrival_s"), kind="stable")[first:]] = False
    if not known.any():
        raise TraceError(f"{path}: none of its requests was replayed")
    measured, other = request_metrics(bundle), request_metrics(simulated)
    at = index.filter(pa.array(known)).to_numpy(zero_copy_only=False)
    return Missing(*(measured[name][known] - other[name][at] for name in ("tpot", "ttft")))


def _mean(bundles: Sequence[Bundle], name: str) -> float:
    return float(np.nanmean(np.concatenate([request_metrics(b)[name] for b in bundles])))


def _interval(missing: Floats) -> Floats:
    """2.5th and 97.5th percentile of the mean of resampled blocks of requests, ``(2,)``."""
    values = missing[np.isfinite(missing)]
    blocks = np.array_split(values, max(1, len(values) // BLOCK))
    sums, sizes = np.array([b.sum() for b in blocks]), np.array([len(b) for b in blocks])
    draws = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    found: Floats = np.percentile(
        sums[draws].sum(axis=1) / sizes[draws].sum(axis=1) - values.mean(), [2.5, 97.5]
    )
    return found


def overhead_table(overhead: Overhead) -> str:
    """The constants with their intervals, and what to know of them."""
    lines = [f"vllm {overhead.engine_version} on {overhead.hardware}, fitted on "
             + ", ".join(f["name"] for f in overhead.fitted_on)]  # fmt: skip
    for name, what in (("step_s", "added to a step"), ("frontend_s", "before a request queues")):
        if name not in overhead.intervals:
            continue
        low, high = overhead.intervals[name]
        lines.append(
            f"  {what:<24} {getattr(overhead, name) * 1e3:9.4f} ms  [{low * 1e3:.4f}, "
            f"{high * 1e3:.4f}]"
        )
    return "\n".join([*lines, *(f"warning: {w}" for w in overhead.warnings)])
