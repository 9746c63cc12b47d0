"""Decision fidelity: over several configurations, does the simulator choose as reality does?

For each objective (a statistic of a metric): Kendall's tau of simulated against measured,
over all pairs and over those that differ by more than the noise; the regret of the
simulator's best choice, which is what it costs against the truly best; and for each limit
(SLO) whether both say pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from traces.errors import TraceError, nearest
from validation.compared import COMPARED
from validation.configurations import OBJECTIVES, Configuration, Objective
from validation.errors import STATISTICS, relative_error
from validation.intervals import error_intervals
from validation.samples import finite

NOISE_MULTIPLE = 2.0


@dataclass(frozen=True, slots=True)
class Limit:
    """An SLO: what an objective may reach, in the metric's unit; ``given`` by the user."""

    objective: Objective
    value: float
    given: bool = True


def decide(configurations: Sequence[Configuration], limits: Sequence[Limit] = ()) -> dict[str, Any]:
    """Everything above as plain data; without ``limits`` the median of measured is one each."""
    known = [o for o in OBJECTIVES if all(_has(c, o.metric) for c in configurations)]
    for limit in limits:
        if not all(_has(c, limit.objective.metric) for c in configurations):
            raise TraceError(f"--slo {limit.objective.name}: not measured in all configurations")
    values = {o.name: [c.value(o) for c in configurations] for o in known}
    chosen = list(limits) or [
        Limit(o, float(np.median([v[0] for v in values[o.name]])), given=False) for o in known
    ]
    return {
        "schema": 1,
        "configurations": [
            {
                "name": c.name,
                "measured": c.hashes,
                "fitted": c.fitted,
                "values": {o.name: _row(*values[o.name][i]) for o in known},
            }
            for i, c in enumerate(configurations)
        ],
        "objectives": {o.name: _fidelity(o, configurations, values[o.name]) for o in known},
        "slos": {limit.objective.name: _agreement(limit, configurations) for limit in chosen},
    }


def _has(configuration: Configuration, metric: str) -> bool:
    sides = [*configuration.measured, configuration.simulated]
    return all(metric in side and len(finite(side[metric])) for side in sides)


def _row(measured: float, simulated: float, noise: float | None) -> dict[str, float | None]:
    error = relative_error(measured, simulated)
    return {"measured": measured, "simulated": simulated, "error": error, "noise": noise}


def _fidelity(
    objective: Objective,
    configurations: Sequence[Configuration],
    values: Sequence[tuple[float, float, float | None]],
) -> dict[str, Any]:
    measured, simulated = [v[0] for v in values], [v[1] for v in values]
    noise = pooled_noise([v[2] for v in values])
    tau = float(stats.kendalltau(measured, simulated).statistic)
    pairs = list(combinations(range(len(values)), 2))
    decided = [p for p in pairs if _differ(objective, configurations, measured, noise, *p)]
    signs = [
        np.sign(measured[i] - measured[j]) * np.sign(simulated[i] - simulated[j])
        for i, j in decided
    ]
    true = min(range(len(values)), key=lambda i: objective.sign * measured[i])
    best = min(objective.sign * s for s in simulated)
    # of equally good choices the one that costs most
    choice = max(
        (i for i, s in enumerate(simulated) if objective.sign * s == best),
        key=lambda i: objective.sign * measured[i],
    )
    return {
        "tau": tau if np.isfinite(tau) else None,
        "pairs": len(pairs),
        "decided": {
            "pairs": len(decided),
            "tau": float(np.mean(signs)) if signs else None,
            "by": f"{NOISE_MULTIPLE:g} s" if noise is not None else "95 % interval of the pair",
        },
        "noise": noise,
        "best": {
            "measured": configurations[true].name, "simulated": configurations[choice].name,
        },
        "regret": abs(measured[choice] - measured[true]) / measured[true]
        if measured[true]
        else None,
    }  # fmt: skip


def pooled_noise(noises: Sequence[float | None]) -> float | None:
    """Root mean square of the known noises; None if none is known."""
    known = [n for n in noises if n is not None]
    return float(np.sqrt(np.mean(np.square(known)))) if known else None


def _differ(
    objective: Objective,
    configurations: Sequence[Configuration],
    measured: Sequence[float],
    noise: float | None,
    i: int,
    j: int,
) -> bool:
    """Whether two configurations really differ: by over 2 s, else by their interval."""
    if noise is not None:
        mean = (measured[i] + measured[j]) / 2
        return abs(measured[i] - measured[j]) > NOISE_MULTIPLE * noise * mean
    if COMPARED[objective.metric].per == "run":
        return measured[i] != measured[j]
    one, other = (finite(configurations[k].measured[0][objective.metric]) for k in (i, j))
    interval = error_intervals(one, other)[objective.statistic]
    return interval is not None and not interval[0] <= 0 <= interval[1]


def _agreement(limit: Limit, configurations: Sequence[Configuration]) -> dict[str, Any]:
    """Confusion of pass and fail at one limit; ``near`` lie within the noise of it."""
    objective = limit.objective
    values = [c.value(objective) for c in configurations]
    noise = pooled_noise([v[2] for v in values])
    counts = {"both_pass": 0, "both_fail": 0, "wrong_pass": 0, "wrong_fail": 0}
    near = []
    for configuration, (measured, simulated, _) in zip(configurations, values, strict=True):
        real, ours = (objective.sign * (v - limit.value) <= 0 for v in (measured, simulated))
        kind = f"both_{'pass' if real else 'fail'}" if real == ours else (
            f"wrong_{'pass' if ours else 'fail'}")  # fmt: skip
        counts[kind] += 1
        if noise is not None and abs(measured - limit.value) <= NOISE_MULTIPLE * noise * measured:
            near.append(configuration.name)
    return {
        "limit": limit.value,
        "given": limit.given,
        "agreement": (counts["both_pass"] + counts["both_fail"]) / len(values),
        **counts,
        "near": near,
    }


def parse_limit(text: str) -> Limit:
    """``ttft.p99=0.5``: a metric's statistic and what it may reach. Raises TraceError."""
    name, _, value = text.partition("=")
    metric, _, statistic = name.partition(".")
    known: Mapping[str, Objective] = {o.name: o for o in OBJECTIVES}
    try:
        number = float(value)
    except ValueError:
        raise TraceError(
            f"--slo {text}: expected METRIC.STATISTIC=NUMBER, as ttft.p99=0.5"
        ) from None
    wanted = Objective(metric, statistic or "mean")
    if metric not in {o.metric for o in OBJECTIVES} or wanted.statistic not in STATISTICS:
        raise TraceError(f"--slo {text}: unknown objective {name!r}{nearest(name, known)}")
    return Limit(wanted, number)
