"""The attribution ladder: what explains the difference between simulated and measured.

It starts at the measured run and puts one simulated thing after another in the place of the
measured one, until everything is simulated; each rung is a run of its own, and a term is
the step from one rung to the next, so that the terms add up to the whole error::

    measured       the run itself
    record         recorded batches at recorded step times, run by this module's engine
    scheduling     batches decided by the simulator's scheduler
    arrivals       requests reach the queue as the simulator's front end lets them
    handover       proxy, links and the decode side's front end (of a prefill/decode pair)
    routing        replicas chosen by the simulator (where there are several)
    kv_capacity    KV blocks of the simulated deployment
    settings       its other scheduler settings
    host_overhead  host time and the gap between steps predicted
    operators      forward time predicted, under the measured run's expert loads and links
    expert_loads   loads and placement of experts of the simulated deployment
    links          its links between the devices of an engine: nothing measured is left
    rest           the simulated run itself: what this module's plain engine leaves out

A prefill/decode pair begins with scheduling: its recorded batches are not run by themselves.
Scheduling comes before predicted times because a schedule follows the times: a late step
that lets another request in is the operators' doing. Values are means over the compared
requests of MEASURED alone, seconds; repeats have batches and times of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from traces.bundle import Bundle
from traces.errors import TraceError
from validation import provenance
from validation.divergence import Schedule, compare_pair_schedules, compare_schedules
from validation.mixing import LADDER_METRICS, Means, Mixer, Simulator, means_of
from validation.pair_mixing import ROLES, PairMixer, PairSimulator
from validation.step_errors import step_errors

__all__ = ["LADDER_METRICS", "TERMS", "PairSimulator", "Simulator", "build_ladder"]

Runs = list[tuple[str, object, Callable[[], Means]]]

TERMS = {
    "record": "recorded batches at recorded times",
    "scheduling": "batches decided by the simulator",
    "arrivals": "arrivals and front end simulated",
    "handover": "proxy and KV transfers predicted",
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
    simulator: Simulator | PairSimulator,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Climb the ladder; returns plain data for the scorecard's ``ladder``.

    Keys: ``rungs`` and ``terms`` (name, what, and seconds by metric), ``largest`` (the
    term that is, by metric), ``schedule`` (agreement under recorded times, and the first
    divergence) and ``steps`` (predicted against measured step times of the recorded
    batches). Raises TraceError if the measured bundle does not record enough.
    """
    cluster = _check(measured, simulated, simulator)
    mixer: Mixer | PairMixer
    if isinstance(simulator, PairSimulator):
        mixer = pairs = PairMixer(measured, simulated, simulator)
        runs: Runs = [(name, mix, partial(pairs.run, mix)) for name, mix in pairs.mixes()]
        decide = partial(_pair_schedule, measured, pairs, simulator)
    else:
        mixer = one = Mixer(measured, simulated, simulator, cluster)
        runs = [(name, mix, partial(one.run, mix)) for name, mix in one.mixes()]
        decide = partial(_schedule, measured, one, simulator, cluster)
    rungs: dict[str, Means] = {"measured": means_of(measured, mixer.pairing.measured)}
    last: object = None
    for name, mix, run in runs:
        progress(f"ladder: {TERMS[name]}")
        before = next(reversed(rungs.values()))
        rungs[name] = before if mix == last else run()
        last = mix
    rungs["rest"] = means_of(simulated, mixer.pairing.simulated)
    terms = _terms(rungs)
    progress("ladder: the schedule under recorded times")
    schedule = decide()
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


def _schedule(measured: Bundle, mixer: Mixer, simulator: Simulator, cluster: str) -> Schedule:
    return compare_schedules(
        measured, mixer.all_requests(), simulator.measured, mixer.records, cluster
    )


def _pair_schedule(measured: Bundle, mixer: PairMixer, simulator: PairSimulator) -> Schedule:
    first, last = (simulator.measured[role] for role in ROLES)
    return compare_pair_schedules(
        measured, mixer.requests_of_sides(), (first.config, last.config),
        [(simulator.measured[role].name, mixer.records[role]) for role in ROLES],
    )  # fmt: skip


def _terms(rungs: dict[str, Means]) -> dict[str, Means]:
    values = list(rungs.values())
    return {
        name: {m: after[m] - before[m] for m in LADDER_METRICS}
        for name, before, after in zip(list(rungs)[1:], values, values[1:], strict=False)
    }


def _check(measured: Bundle, simulated: Bundle, simulator: Simulator | PairSimulator) -> str:
    """Raise TraceError for what the ladder cannot climb; returns the (first) cluster's name."""
    sides = simulator.measured if isinstance(simulator, PairSimulator) else None
    pair = sides is not None
    for bundle in (measured, simulated):
        clusters = bundle.manifest.deployment.get("clusters") or [{}]
        roles = [str(c.get("role", "colocated")) for c in clusters]
        if sorted(roles) != (sorted(ROLES) if pair else ["colocated"]):
            raise TraceError(
                f"{bundle.path}: --ladder replays one co-located cluster, or two prefill/decode "
                f"pairs, not {', '.join(roles)}"
            )
    for table in ("steps", "step_requests"):
        if table not in measured:
            raise TraceError(f"{measured.path}: no {table}.parquet: --ladder needs every batch")
    for stamp in ("queued_s", "decode_queued_s") if pair else ("queued_s",):
        if stamp not in measured.requests.column_names:
            raise TraceError(f"{measured.path}: requests without {stamp}: --ladder needs it")
    if sides and any(side.config.lock_step_ranks > 1 for side in sides.values()):
        raise TraceError(f"{measured.path}: --ladder replays no pair of lock-step ranks")
    if isinstance(simulator, Simulator):
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
