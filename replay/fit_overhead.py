"""``frontier fit --operators``: what kernels do not tell of a step, from captured requests.

Constants are sought with which the replay of the captures has their mean TPOT and mean TTFT: time
added to every step, to every step with prompts, to every request before it is queued, and the share
by which all kernels take longer. Each replay moves them by what is missing: of TPOT by the secant
of the last two, or, where several constants of steps are sought, by least squares over the
requests, which differ in how many of their steps had prompts and in how long their kernels took.
Requests are paired, so intervals come from resampled blocks of their differences.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
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

STEP, PROMPT_STEP, SLOWDOWN = "step_s", "prompt_step_s", "slowdown"
FRONTEND = "frontend_s"
OF_STEPS = (STEP, PROMPT_STEP, SLOWDOWN)
CONSTANTS = (SLOWDOWN, FRONTEND)  # fitted if none is named
SAID = {  # of a constant, in a warning and in the table
    STEP: ("a step", "added to a step"),
    PROMPT_STEP: ("a step with prompts", "added if it has prompts"),
    SLOWDOWN: ("kernels", "kernels take longer by"),
    FRONTEND: ("a request's start", "before a request queues"),
}
ROUNDS = 6
CLOSE = 1e-3  # of the mean measured
BLOCK, RESAMPLES = 50, 1000  # requests that follow each other share the engine's state


@dataclass(slots=True)
class Missing:
    """Measured minus simulated, request by request, seconds ``(n,)``; NaN where not known.

    ``prompts`` is the share of a request's decode steps that had prompts, 0 if not asked for;
    ``kernels`` the seconds of kernels in a mean one of them.
    """

    tpot: Floats
    ttft: Floats
    prompts: Floats
    kernels: Floats


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
    values, below = dict.fromkeys(constants, 0.0), dict.fromkeys(constants, 0.0)
    free, seen = set(constants), []
    unsettled: list[str] = []
    least = {name: CLOSE * _mean(bundles, name) for name in ("tpot", "ttft")}
    for number in range(1, ROUNDS + 1):
        found = [
            _missing(b, path, plan, values, first, progress)
            for b, path, plan in zip(bundles, paths, plans, strict=True)
        ]
        every = _joined(found)
        tpot, ttft = every.tpot, every.ttft
        gap, late = float(np.nanmean(tpot)), float(np.nanmean(ttft))
        said = ", ".join(f"{name} {_told(name, value)}" for name, value in values.items())
        progress(
            f"round {number}: {said}: {gap * 1e3:+.3f} ms TPOT and {late * 1e3:+.2f} ms TTFT "
            "missing"
        )
        of_steps = [name for name in OF_STEPS if name in free]
        columns = _columns(of_steps, every)
        moves = dict(zip(of_steps, _solve(tpot, columns).tolist(), strict=True))
        unit_s = {n: float(np.nanmean(c)) for n, c in zip(of_steps, columns, strict=True)}
        left = sum(abs(moves[name]) * unit_s[name] for name in of_steps)
        if len(of_steps) == 1 and PROMPT_STEP not in of_steps:
            (name,) = of_steps
            seen.append((values[name] * unit_s[name], gap))
            moves[name] *= _pace(seen)
        if FRONTEND in free:  # the step of its first token has prompts, and moves it too
            moves[FRONTEND] = late - moves.get(PROMPT_STEP, 0.0)
        if left < least["tpot"] and (FRONTEND not in free or abs(late) < least["ttft"]):
            break
        for name, move in moves.items():
            if values[name] + move < 0 and name != SLOWDOWN:
                # the others are to fit what is left with this one at 0
                below[name], values[name] = values[name] + move, 0.0
                free.remove(name)
            else:
                values[name] += move
    else:
        unsettled = [
            f"not settled after {ROUNDS} rounds: {gap * 1e3:+.3f} ms TPOT and {late * 1e3:+.2f} ms "
            "TTFT were missing in the last"
        ]
    overhead = Overhead(
        plans[0].engine_version,
        plans[0].only.cluster.hardware,
        step_s=values.get(STEP, 0.0),
        frontend_s=values.get(FRONTEND, 0.0),
        prompt_step_s=values.get(PROMPT_STEP, 0.0),
        slowdown=values.get(SLOWDOWN, 0.0),
        intervals=_intervals(values, every),
        fitted_on=[{"hash": bundle_hash(b), "name": b.path.name} for b in bundles],
        warnings=[
            f"{SAID[name][0]}: the captures are faster than their kernels by {-value * 1e3:.3f} "
            "ms; 0 is kept"
            for name, value in below.items()
            if value < 0
        ]
        + unsettled,
    )
    claim_directory(out)
    for file in profile.iterdir():
        if file.is_file() and file.name != OVERHEAD:
            shutil.copyfile(file, out / file.name)
    save_overhead(overhead, out)
    return overhead


def _joined(parts: Sequence[Missing]) -> Missing:
    names = [f.name for f in fields(Missing)]
    return Missing(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _told(name: str, value: float) -> str:
    return f"{value:.2%}" if name == SLOWDOWN else f"{value * 1e3:.3f} ms"


def _columns(of_steps: Sequence[str], missing: Missing) -> list[Floats]:
    """What a unit of each constant adds to a decode step of each request, ``(n,)`` each."""
    ones = np.ones(len(missing.tpot))
    each = {STEP: ones, PROMPT_STEP: missing.prompts, SLOWDOWN: missing.kernels}
    return [each[name] for name in of_steps]


def _solve(tpot: Floats, columns: Sequence[Floats]) -> Floats:
    """How many units of each column: least squares of two, the ratio of the means of one."""
    known = np.isfinite(tpot)
    if not columns or not known.any():
        return np.zeros(len(columns))
    x = np.stack([c[known] for c in columns], axis=1)
    by = x if len(columns) > 1 else np.ones_like(x)
    return np.asarray(np.linalg.lstsq(by.T @ x, by.T @ tpot[known], rcond=None)[0], np.float64)


def _pace(seen: Sequence[tuple[float, float]]) -> float:
    """Seconds a step for each second of TPOT missing: 1 at first, then the secant's."""
    if len(seen) < 2:
        return 1.0
    (x0, y0), (x1, y1) = seen[-2:]
    return float(np.clip((x1 - x0) / (y0 - y1), 0.2, 2.0)) if y0 != y1 else 1.0


def _missing(
    bundle: Bundle, path: Path, plan: Plan, values: Mapping[str, float], first: int | None,
    progress: Say,
) -> Missing:  # fmt: skip
    model, note = load_step_time(plan, progress=progress)
    assert isinstance(model, OperatorStepTime)
    model = model.with_overhead(**values)
    record = ("steps",) if PROMPT_STEP in values else ()
    manifest, tables = replay(load_workload(path), plan, record=record, step_time=(model, note))
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
    tpot, ttft = (measured[name][known] - other[name][at] for name in ("tpot", "ttft"))
    prompts = _prompts(simulated)[at] if record else np.zeros(len(at))
    added = values.get(STEP, 0.0) + values.get(PROMPT_STEP, 0.0) * prompts
    kernels = (other["tpot"][at] - added) / (1 + values.get(SLOWDOWN, 0.0))
    return Missing(tpot, ttft, prompts, kernels)


def _prompts(simulated: Bundle) -> Floats:
    """Share of each request's decode steps that had prompts, ``(n_requests,)``."""
    requests, steps = simulated.requests, simulated.table("steps")
    begin, end = (column(requests, name) for name in ("first_token_s", "finished_s"))
    served_by, ran_on = column(requests, "replica"), column(steps, "replica")
    ends, prefill = (column(steps, name) for name in ("end_s", "prefill_tokens"))
    found = np.zeros(len(begin))
    for replica in np.unique(ran_on):
        own, there = served_by == replica, ran_on == replica
        with_prompts, every = (
            np.searchsorted(times, end[own], "right") - np.searchsorted(times, begin[own], "right")
            for times in (ends[there & (prefill > 0)], ends[there])
        )
        found[own] = with_prompts / np.maximum(every, 1)
    return found


def _mean(bundles: Sequence[Bundle], name: str) -> float:
    return float(np.nanmean(np.concatenate([request_metrics(b)[name] for b in bundles])))


def _intervals(values: Mapping[str, float], missing: Missing) -> dict[str, list[float]]:
    """95 % of what the constants are on resampled blocks of requests."""
    of_steps = [name for name in OF_STEPS if name in values]
    ttft = missing.ttft
    spread = np.c_[
        _resampled(missing.tpot, _columns(of_steps, missing)),
        _resampled(ttft, [np.ones(len(ttft))]),
    ]
    bounds = (np.percentile(spread, [2.5, 97.5], axis=0) - spread.mean(axis=0)).T.tolist()
    both = dict(zip([*of_steps, FRONTEND], bounds, strict=True))
    return {name: [value + bound for bound in both[name]] for name, value in values.items()}


def _resampled(missing: Floats, columns: Sequence[Floats]) -> Floats:
    """``_solve`` on resampled blocks of requests, ``(RESAMPLES, columns)``."""
    known = np.flatnonzero(np.isfinite(missing))
    blocks = np.array_split(known, max(1, len(known) // BLOCK))
    draws = np.random.default_rng(0).integers(len(blocks), size=(RESAMPLES, len(blocks)))
    found = np.zeros((RESAMPLES, len(columns)))
    for i, draw in enumerate(draws):
        rows = np.concatenate([blocks[b] for b in draw])
        found[i] = _solve(missing[rows], [c[rows] for c in columns])
    return found


def overhead_table(overhead: Overhead) -> str:
    """The constants with their intervals, and what to know of them."""
    lines = [f"vllm {overhead.engine_version} on {overhead.hardware}, fitted on "
             + ", ".join(f["name"] for f in overhead.fitted_on)]  # fmt: skip
    for name, (_, what) in SAID.items():
        if name not in overhead.intervals:
            continue
        low, high = overhead.intervals[name]
        scale, unit = (100.0, "% ") if name == SLOWDOWN else (1e3, "ms")
        lines.append(
            f"  {what:<24} {getattr(overhead, name) * scale:9.4f} {unit}  [{low * scale:.4f}, "
            f"{high * scale:.4f}]"
        )
    return "\n".join([*lines, *(f"warning: {w}" for w in overhead.warnings)])
