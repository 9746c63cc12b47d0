"""Faults seeded into simulations of the shipped captures, and what the gate says of them.

    python tests/reports/seeded_faults.py      # prints the table (make faults)

A fault changes the simulator, its profile or its deployment. Where it moves no gated statistic
by ``SHOWN_S`` noise floors it cannot be told from another run: the table shows that too.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
from expert_world import DEPLOYMENT, GROUP, ExpertWorld, evenly_loaded, half_the_bandwidth
from rich.table import Table

from replay.plan import load_step_time, make_plan
from replay.simulate import replay, run_replay
from replay.verbs.validate import simulator_of
from reports.check import GATED, Finding, Threshold, run_check
from reports.console import open_console
from reports.ladder import TITLES
from reports.scorecard_file import write_scorecard
from reports.tables import console
from simulator.scheduling.fcfs import FCFS
from simulator.scheduling.reference import Scheduler
from simulator.step_time.fit import fit_profile
from simulator.step_time.fitted import StepProfile, save_profile
from traces.bundle import Bundle, read_bundle, write_bundle
from traces.samples import sample_groups, sample_runs
from traces.workload import bundle_workload
from validation.ladder import PairSimulator, Simulator, build_ladder
from validation.mixed_clock import MixedClock
from validation.mixing import requests_of
from validation.predicting import Predictor
from validation.recorded_steps import NO_STEPS, PARTS
from validation.rerun import Engine
from validation.scorecard import Scorecard, build

FITTED_ON = {
    "dense-low": "dense-high", "dense-high": "dense-low", "dense-preempt": "dense-low",
    "dense-sessions": "dense-low", "moe-low": "moe-high", "moe-high": "moe-low",
}  # fmt: skip
PAIR = "dense-pd-wire"  # its first run is held against a fit on the others
SHOWN_S = 3.0  # noise floors that a fault must move a statistic by


@cache
def runs(group: str) -> list[Bundle]:
    """The captures of a group."""
    return [read_bundle(path) for path in sample_runs(group)]


@cache
def fitted(group: str) -> StepProfile:
    """A profile fitted on all captures of a group."""
    return fit_profile(runs(group))


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: the ladder's term that must name it, the groups it is tried on, what it does.

    ``change`` alters the profile, ``blocks`` scales the KV capacity, ``edit`` alters the
    deployment of the expert-parallel world; ``patch`` is made while the fault is in, and needs
    the plain engine, which is Python.
    """

    name: str
    term: str
    groups: tuple[str, ...] = tuple(FITTED_ON)
    change: Callable[[StepProfile], StepProfile] = lambda profile: profile
    blocks: float = 1.0
    edit: Callable[[dict[str, Any]], dict[str, Any]] = lambda deployment: deployment
    patch: Callable[[], Any] | None = None

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """While this holds, the simulator's code has the fault."""
        if self.patch is None:
            yield
            return
        with self.patch():
            yield


def slower(profile: StepProfile) -> StepProfile:
    return replace(profile, forward={name: 1.1 * c for name, c in profile.forward.items()})


def without_host(profile: StepProfile) -> StepProfile:
    return replace(profile, host={"step": 0.0}, gap={"step": 0.0})


def half_the_link(profile: StepProfile) -> StepProfile:
    assert profile.link is not None
    return replace(
        profile, link=profile.link | {"bandwidth_gb_s": profile.link["bandwidth_gb_s"] / 2}
    )


def oldest_preempted() -> Any:
    return mock.patch.object(FCFS, "victim", return_value=0)


NONE = Fault("none", "")
FAULTS = (
    Fault("operators 10 % slow", "operators", change=slower),
    Fault("host overhead dropped", "host_overhead", change=without_host),
    # elsewhere there are blocks for all
    Fault("KV capacity -10 %", "kv_capacity", ("dense-preempt",), blocks=0.9),
    Fault("preemption order reversed", "scheduling", ("dense-preempt",), patch=oldest_preempted),
    Fault("expert loads uniform", "expert_loads", (GROUP,), edit=evenly_loaded),
    Fault("KV link bandwidth halved", "handover", (PAIR,), change=half_the_link),
    Fault("link between ranks halved", "links", (GROUP,), edit=half_the_bandwidth),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault did on one group: the statistic moved most, by how many noise floors.

    ``findings`` and ``reason`` are the gate's; empty where it moved nothing by ``SHOWN_S``.
    """

    fault: Fault
    group: str
    metric: str
    moved_s: float
    findings: list[Finding]
    reason: str
    ladder: dict[str, Any]

    @property
    def shown(self) -> bool:
        """Whether it can be told from another run."""
        return self.moved_s >= SHOWN_S

    @property
    def named(self) -> bool:
        """Whether the ladder's largest term is the fault's."""
        return f"ladder: {TITLES[self.fault.term].lower()} " in self.reason


class Lab:
    """Simulations of the captures, and of the expert-parallel world, kept under ``home``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._baselines: dict[str, Scorecard] = {}
        self._world: ExpertWorld | None = None
        self._measured: list[Bundle] = []

    def runs(self, group: str) -> list[Bundle]:
        """The measured runs of a group."""
        if group != GROUP:
            return runs(group)
        if self._world is None:
            self._world = ExpertWorld(self._home / GROUP)
            self._measured = self._world.measured()
        return self._measured

    def simulate(self, group: str, fault: Fault = NONE) -> tuple[Bundle, Simulator | PairSimulator]:
        """A replay of a group's first run with the other group's profile and the fault."""
        if self._world is not None and group == GROUP:
            return self._world.simulated(fault.edit(DEPLOYMENT))
        if group == PAIR:
            return self._simulate_pair(fault)
        number = len(list(self._home.iterdir()))
        operators = self._home / f"{number}-profile"
        save_profile(fault.change(fitted(FITTED_ON[group])), operators)
        first = runs(group)[0]
        real = plan = make_plan(first.path, operators=operators)
        part = plan.only
        capacity = replace(part.capacity, blocks=int(part.capacity.blocks * fault.blocks))
        plan = replace(plan, clusters=(replace(part, capacity=capacity),))
        workload = bundle_workload(first)
        manifest, tables = replay(workload, plan, record=["steps"])
        model, note = load_step_time(plan)
        configs = real.scheduler_config(), plan.scheduler_config()
        if fault.patch is not None:
            tables = {"requests": run_plainly(workload, configs[1], model, tables["requests"])}
        bundle = write_bundle(self._home / f"{number}-{group}", manifest, tables)
        return bundle, Simulator(*configs, model, note["profile"])

    def _simulate_pair(self, fault: Fault) -> tuple[Bundle, Simulator | PairSimulator]:
        number = len(list(self._home.iterdir()))
        operators, out = (self._home / f"{number}-{name}" for name in ("profile", PAIR))
        first, *others = runs(PAIR)
        save_profile(fault.change(fit_profile(others)), operators)
        run_replay(first.path, first.path, out, operators=operators, record="steps")
        return read_bundle(out), simulator_of(first.path, out, operators)

    def baseline(self, group: str) -> Scorecard:
        """The scorecard without a fault."""
        if group not in self._baselines:
            measured, *repeats = self.runs(group)
            bundle, simulator = self.simulate(group)
            ladder = build_ladder(measured, bundle, simulator)
            self._baselines[group] = replace(build(measured, bundle, repeats), ladder=ladder)
        return self._baselines[group]

    def seed(self, fault: Fault, group: str) -> Outcome:
        """Seed a fault into the simulation of a group and hold it to the baseline."""
        base = self.baseline(group)
        measured, *repeats = self.runs(group)
        with fault.seeded():
            bundle, simulator = self.simulate(group, fault)
            now = build(measured, bundle, repeats)
            (metric, key), most = max(moves(now, base).items(), key=lambda item: item[1])
            label = f"{now.metrics[metric].metric.label} {key}"
            if most < SHOWN_S:
                return Outcome(fault, group, label, most, [], "", {})
            now = replace(now, ladder=build_ladder(measured, bundle, simulator))
        files = [self._home / f"{name}.json" for name in ("now", "base")]
        for file, card in zip(files, (now, base), strict=True):
            write_scorecard(card, file)
        findings, reason = run_check(*files, update=False, threshold=Threshold())
        return Outcome(fault, group, label, most, findings, reason, now.ladder)


def run_plainly(workload: Any, config: Any, model: Any, table: pa.Table) -> pa.Table:
    """The requests after a run of the plain engine, whose scheduler can be patched."""
    requests = requests_of(workload.requests, config, workload.hash_block_tokens)
    inbox = [(r.arrival_ps + model.frontend_ps, r) for r in requests]
    Engine(inbox, Scheduler(config), MixedClock(NO_STEPS, Predictor(model), frozenset(PARTS))).run()
    stamps = {"scheduled_s": "first_scheduled_ps", "first_token_s": "first_token_ps",
              "finished_s": "finished_ps"}  # fmt: skip
    for name, attribute in stamps.items():
        values = pa.array([getattr(r, attribute) / 1e12 for r in requests])
        table = table.set_column(table.column_names.index(name), name, values)
    return table


def moves(now: Scorecard, base: Scorecard) -> dict[tuple[str, str], float]:
    """How far each gated statistic moved, in noise floors."""
    return {
        (name, key): abs(s.simulated - base.metrics[name].statistics[key].simulated)
        / (s.measured * s.noise)
        for name in GATED
        for key, s in now.metrics[name].statistics.items()
        if s.noise and name in base.metrics
    }


def cases() -> list[tuple[Fault, str]]:
    """Every fault on every shipped group it is tried on."""
    known = {*sample_groups(), GROUP}
    return [(fault, group) for fault in FAULTS for group in fault.groups if group in known]


def table(outcomes: list[Outcome]) -> Table:
    """The outcomes for the console."""
    head = ("fault", "on", "moves most", "by", "check", "says")
    rows = [
        (
            o.fault.name, o.group, o.metric, f"{o.moved_s:.1f} s",
            ("fails" if o.findings else "passes") if o.shown else "within noise", o.reason,
        )
        for o in outcomes
    ]  # fmt: skip
    return console(head, rows, labels=len(head))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(Path(scratch))
        found = []
        for case in cases():
            print(f"{case[0].name} on {case[1]} ...", file=sys.stderr)
            found.append(lab.seed(*case))
    open_console().print(table(found))
