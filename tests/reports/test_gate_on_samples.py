"""The gate on real captures: silent between repeats, and loud where a fault was seeded.

Faults are seeded into the simulator or its profile. Where a fault moves no gated statistic
by three noise floors it cannot be told from another run, and the test says so and skips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from replay.plan import load_step_time, make_plan
from replay.simulate import replay
from reports.check import GATED, Threshold, compare, run_check
from reports.ladder import TITLES
from reports.scorecard_file import write_scorecard
from simulator.scheduling.fcfs import FCFS
from simulator.scheduling.reference import Scheduler
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import StepProfile, save_profile
from traces.bundle import Bundle, read_bundle, write_bundle
from traces.samples import sample_groups, sample_runs
from traces.workload import bundle_workload
from validation.ladder import Simulator, build_ladder, requests_of
from validation.recorded_steps import NO_STEPS, PARTS, MixedClock
from validation.rerun import Engine
from validation.scorecard import Scorecard, build

FITTED_ON = {
    "dense-low": "dense-high", "dense-high": "dense-low", "dense-preempt": "dense-low",
    "dense-sessions": "dense-low", "moe-low": "moe-high", "moe-high": "moe-low",
}  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not set(FITTED_ON) <= set(sample_groups()), reason="no sample bundles"),
]
SHOWN_S = 3.0  # noise floors that a fault must move a statistic by


@cache
def runs(group: str) -> list[Bundle]:
    return [read_bundle(path) for path in sample_runs(group)]


@cache
def fitted(group: str) -> StepProfile:
    return fit_profile(runs(group))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Bundle, Simulator]]:
    """Replays a group's first run, with a changed profile or fewer KV blocks."""
    home = tmp_path_factory.mktemp("gate")

    def run(
        group: str,
        change: Callable[[StepProfile], StepProfile] = lambda p: p,
        blocks: float = 1.0,
        plainly: bool = False,
    ) -> tuple[Bundle, Simulator]:
        number = len(list(home.iterdir()))
        operators = home / f"{number}-profile"
        save_profile(change(fitted(FITTED_ON[group])), operators)
        first = runs(group)[0]
        real = plan = make_plan(first.path, operators=operators)
        part = plan.only
        capacity = replace(part.capacity, blocks=int(part.capacity.blocks * blocks))
        plan = replace(plan, clusters=(replace(part, capacity=capacity),))
        workload = bundle_workload(first)
        manifest, tables = replay(workload, plan, record=["steps"])
        model, note = load_step_time(plan)
        configs = real.scheduler_config(), plan.scheduler_config()
        if plainly:
            tables = {"requests": run_plainly(workload, configs[1], model, tables["requests"])}
        bundle = write_bundle(home / f"{number}-{group}", manifest, tables)
        return bundle, Simulator(*configs, model, note["profile"])

    return run


def run_plainly(workload: Any, config: Any, model: Any, table: pa.Table) -> pa.Table:
    """The requests after a run of the plain engine, whose scheduler a test can change."""
    requests = requests_of(workload.requests, config, workload.hash_block_tokens)
    inbox = [(r.arrival_ps + model.frontend_ps, r) for r in requests]
    Engine(inbox, Scheduler(config), MixedClock(NO_STEPS, model, frozenset(PARTS))).run()
    stamps = {"scheduled_s": "first_scheduled_ps", "first_token_s": "first_token_ps",
              "finished_s": "finished_ps"}  # fmt: skip
    for name, attribute in stamps.items():
        values = pa.array([getattr(r, attribute) / 1e12 for r in requests])
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def check_pairs(cards: Iterator[tuple[Scorecard, Scorecard]]) -> tuple[int, int]:
    """How many checks alarmed, of how many."""
    found = [compare(now, base, Threshold()) for now, base in cards]
    return sum(any(f.kind == "regression" for f in each) for each in found), len(found)


def test_without_a_fault_the_gate_is_silent(
    simulated: Callable[..., tuple[Bundle, Simulator]],
) -> None:
    """Checks over all ordered pairs of repeats (b against a), in three ways to use them."""
    counts = {"measured anew": [0, 0], "measured anew, with repeats": [0, 0], "A/A": [0, 0]}
    for group in FITTED_ON:
        real, (simulation, _) = runs(group), simulated(group)
        alone = [build(run, simulation) for run in real]
        for kind, pairs in {
            "measured anew": ((alone[b], alone[a]) for a, b in permutations(range(len(real)), 2)),
            "measured anew, with repeats": with_the_rest(real, simulation),
            "A/A": each_in_the_simulations_place(real),
        }.items():
            alarms, checks = check_pairs(pairs)
            counts[kind][0] += alarms
            counts[kind][1] += checks
    for kind, (alarms, checks) in counts.items():
        print(f"\n{kind}: {alarms} false alarms in {checks} checks ({alarms / checks:.1%})")
        assert checks >= 90
        assert alarms <= 0.05 * checks


def others(real: Sequence[Bundle], *chosen: int) -> list[Bundle]:
    return [run for i, run in enumerate(real) if i not in chosen]


def with_the_rest(
    real: Sequence[Bundle], simulation: Bundle
) -> Iterator[tuple[Scorecard, Scorecard]]:
    for a, b in permutations(range(len(real)), 2):
        rest = others(real, a, b)
        yield build(real[b], simulation, rest), build(real[a], simulation, rest)


def each_in_the_simulations_place(real: Sequence[Bundle]) -> Iterator[tuple[Scorecard, Scorecard]]:
    for a, b in permutations(range(len(real)), 2):
        measured, *rest = others(real, a, b)
        yield build(measured, real[b], rest), build(measured, real[a], rest)


def slower(profile: StepProfile) -> StepProfile:
    return replace(profile, forward={name: 1.1 * c for name, c in profile.forward.items()})


def without_host(profile: StepProfile) -> StepProfile:
    return replace(profile, host={"step": 0.0}, gap={"step": 0.0})


FAULTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "operators": ("operators 10 % slow", {"change": slower}, tuple(FITTED_ON)),
    "host_overhead": ("host overhead dropped", {"change": without_host}, tuple(FITTED_ON)),
    # elsewhere there are blocks for all
    "kv_capacity": ("KV capacity -10 %", {"blocks": 0.9}, ("dense-preempt",)),
    "scheduling": ("preemption order reversed", {"plainly": True}, ("dense-preempt",)),
}


def moves(now: Scorecard, base: Scorecard) -> dict[tuple[str, str], float]:
    """How far each gated statistic moved, in noise floors."""
    return {
        (name, key): abs(s.simulated - base.metrics[name].statistics[key].simulated)
        / (s.measured * s.noise)
        for name in GATED
        for key, s in now.metrics[name].statistics.items()
        if s.noise and name in base.metrics
    }


@pytest.fixture(scope="module")
def baseline(simulated: Callable[..., tuple[Bundle, Simulator]]) -> Callable[[str], Scorecard]:
    """The scorecard of a group without a fault."""

    @cache
    def card(group: str) -> Scorecard:
        measured, *repeats = runs(group)
        bundle, simulator = simulated(group)
        ladder = build_ladder(measured, bundle, simulator)
        return replace(build(measured, bundle, repeats), ladder=ladder)

    return card


@pytest.mark.parametrize(
    ("term", "group"), [(term, group) for term in FAULTS for group in FAULTS[term][2]]
)
def test_a_seeded_fault_is_found_and_named(
    term: str,
    group: str,
    simulated: Callable[..., tuple[Bundle, Simulator]],
    baseline: Callable[[str], Scorecard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault, options, _ = FAULTS[term]
    base = baseline(group)
    if term == "scheduling":
        monkeypatch.setattr(FCFS, "victim", lambda self, running: 0)
    bundle, simulator = simulated(group, **options)
    measured, *repeats = runs(group)
    now = build(measured, bundle, repeats)
    (metric, key), most = max(moves(now, base).items(), key=lambda item: item[1])
    print(f"\n{fault} on {group}: moves {metric} {key} by {most:.1f} s")
    if most < SHOWN_S:
        pytest.skip(f"{fault} on {group} moves no statistic by {SHOWN_S:g} s, at most {most:.1f}")
    now = replace(now, ladder=build_ladder(measured, bundle, simulator))
    for name, card in (("now", now), ("base", base)):
        write_scorecard(card, tmp_path / f"{name}.json")
    findings, reason = run_check(
        tmp_path / "now.json", tmp_path / "base.json", update=False, threshold=Threshold()
    )
    print(reason, "| largest terms:", now.ladder["largest"])
    assert findings[0].kind == "regression"
    assert f"ladder: {TITLES[term].lower()} " in reason
    if term == "scheduling":
        assert now.ladder["schedule"]["first"]["why"]
        assert now.ladder["schedule"]["share"] < base.ladder["schedule"]["share"] == 1.0
