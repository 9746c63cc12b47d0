"""The attribution ladder: what explains the difference between simulated and measured.

It starts at the measured run and puts one simulated thing after another in the place of the
measured one, until everything is simulated; each rung is a run of its own, and a term is
the step from one rung to the next, so that the terms add up to the whole error::

    measured       the run itself
    record         recorded batches at recorded step times, run by this module's engine
    scheduling     batches decided by the simulator's scheduler
    arrivals       requests reach the queue as the simulator's front end lets them
    routing        replicas chosen by the simulator (where there are several)
    kv_capacity    KV blocks of the simulated deployment
    settings       its other scheduler settings
    host_overhead  host time and the gap between steps predicted
    operators      forward time predicted, under the measured run's expert loads and links
    expert_loads   loads and placement of experts of the simulated deployment
    links          its links between the devices of an engine: nothing measured is left
    rest           the simulated run itself: what this module's plain engine leaves out

Scheduling comes before predicted times because a schedule follows the times: a late step
that lets another request in is the operators' doing. Values are means over the compared
requests of MEASURED alone, seconds; repeats have batches and times of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from traces.bundle import Bundle
from traces.errors import TraceError
from validation import provenance
from validation.divergence import compare_schedules
from validation.mixing import LADDER_METRICS, Means, Mix, Mixer, Simulator, means_of
from validation.step_errors import step_errors

__all__ = ["LADDER_METRICS", "TERMS", "Simulator", "build_ladder"]

TERMS = {
    "record": "recorded batches at recorded times",
    "scheduling": "batches decided by the simulator",
    "arrivals": "arrivals and front end simulated",
    "routing": "replicas chosen by the simulator",
    "kv_capacity": "KV blocks of the simulated deployment",
    "settings": "other scheduler settings of the simulated deployment",
    "host_overhead": "host time between forwards predicted",
    "operators": "forward times predicted",
    "expert_loads": "expert loads of the simulated deployment",
    "links": "links of the simulated deployment",
    "rest": "the simulated run itself",
}


def build_ladder(
    measured: Bundle,
    simulated: Bundle,
    simulator: Simulator,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Climb the ladder; returns plain data for the scorecard's ``ladder``.

    Keys: ``rungs`` and ``terms`` (name, what, and seconds by metric), ``largest`` (the
    term that is, by metric), ``schedule`` (agreement under recorded times, and the first
    divergence) and ``steps`` (predicted against measured step times of the recorded
    batches). Raises TraceError if the measured bundle does not record enough.
    """
    cluster = _check(measured, simulated, simulator)
    mixer = Mixer(measured, simulated, simulator, cluster)
    rungs: dict[str, Means] = {"measured": means_of(measured, mixer.pairing.measured)}
    last: Mix | None = None
    for name, mix in mixer.mixes():
        progress(f"ladder: {TERMS[name]}")
        before = next(reversed(rungs.values()))
        rungs[name] = before if mix == last else mixer.run(mix)
        last = mix
    rungs["rest"] = means_of(simulated, mixer.pairing.simulated)
    terms = _terms(rungs)
    progress("ladder: the schedule under recorded times")
    schedule = compare_schedules(
        measured, mixer.all_requests(), simulator.measured, mixer.records, cluster
    )
    return {
        "rungs": [
            {"name": n, "what": TERMS.get(n, "the run itself"), **m} for n, m in rungs.items()
        ],
        "terms": [{"name": n, "what": TERMS[n], **m} for n, m in terms.items()],
        "largest": {m: max(terms, key=lambda n: abs(terms[n][m])) for m in LADDER_METRICS},
        "schedule": {**asdict(schedule), "share": schedule.share},
        "steps": {
            **step_errors(mixer.predictors()),
            "effect": mixer.direct_effect(),
        },
    }


def _terms(rungs: dict[str, Means]) -> dict[str, Means]:
    values = list(rungs.values())
    return {
        name: {m: after[m] - before[m] for m in LADDER_METRICS}
        for name, before, after in zip(list(rungs)[1:], values, values[1:], strict=False)
    }


def _check(measured: Bundle, simulated: Bundle, simulator: Simulator) -> str:
    """Raise TraceError for what the ladder cannot climb; returns the cluster's name."""
    for bundle in (measured, simulated):
        clusters = bundle.manifest.deployment.get("clusters") or [{}]
        roles = [str(c.get("role", "colocated")) for c in clusters]
        if roles != ["colocated"]:
            raise TraceError(
                f"{bundle.path}: --ladder replays one co-located cluster, not {', '.join(roles)}"
            )
    for table in ("steps", "step_requests"):
        if table not in measured:
            raise TraceError(f"{measured.path}: no {table}.parquet: --ladder needs every batch")
    if "queued_s" not in measured.requests.column_names:
        raise TraceError(f"{measured.path}: requests without queued_s: --ladder needs it")
    ranks = simulator.measured.lock_step_ranks, simulator.simulated.lock_step_ranks
    if len({*ranks}) > 1:
        raise TraceError(
            f"{simulated.path}: {ranks[1]} ranks step together, in {measured.path} {ranks[0]}: "
            "--ladder needs as many"
        )
    used = provenance.profile(simulated)["hash"]
    if simulator.profile != used and None not in (simulator.profile, used):
        raise TraceError(
            f"{simulated.path}: simulated with another operator profile ({used}) than --ladder "
            f"got ({simulator.profile})"
        )
    name: str = measured.table("steps")["cluster"][0].as_py()
    return name
