"""The gate on real captures: silent between repeats, and loud where a fault was seeded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import pytest
from seeded_faults import FAULTS, FITTED_ON, SHOWN_S, Fault, Lab, cases, runs

from reports.check import Threshold, compare
from traces.bundle import Bundle, write_bundle
from traces.samples import sample_groups
from validation.scorecard import Scorecard, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not set(FITTED_ON) <= set(sample_groups()), reason="no sample bundles"),
]

LIKE_OTHERS = ("dense-low", "dense-high", "dense-sessions", "moe-low")  # in the long tests only


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"))


def check_pairs(cards: Iterator[tuple[Scorecard, Scorecard]]) -> tuple[int, int]:
    """How many checks alarmed, of how many."""
    found = [compare(now, base, Threshold()) for now, base in cards]
    return sum(any(f.kind == "regression" for f in each) for each in found), len(found)


def only_requests(bundle: Bundle, path: Path) -> Bundle:
    """A copy of what the gate looks at, which is sooner compared."""
    return write_bundle(path, bundle.manifest, {"requests": bundle.requests})


@pytest.mark.long
def test_without_a_fault_the_gate_is_silent(lab: Lab, tmp_path: Path) -> None:
    """Checks over all ordered pairs of repeats (b against a), in three ways to use them."""
    counts = {"measured anew": [0, 0], "measured anew, with repeats": [0, 0], "A/A": [0, 0]}
    for group in FITTED_ON:
        real = [only_requests(b, tmp_path / group / b.path.name) for b in runs(group)]
        simulation = only_requests(lab.simulate(group)[0], tmp_path / group / "simulated")
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


@pytest.mark.parametrize(
    "less_of", [LIKE_OTHERS, pytest.param((), marks=pytest.mark.long)], ids=["some", "all"]
)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.term)
def test_a_seeded_fault_is_found_and_named(
    fault: Fault, less_of: tuple[str, ...], lab: Lab
) -> None:
    """On every group where it moves a gated statistic by 3 s, of which there is one at least."""
    groups = [group for known, group in cases() if known is fault and group not in less_of]
    outcomes = [lab.seed(fault, group) for group in groups]
    if not outcomes:
        pytest.skip("no sample bundles of it")
    shown = [o for o in outcomes if o.shown]
    for o in outcomes:
        print(f"\n{fault.name} on {o.group}: {o.metric} by {o.moved_s:.1f} s: {o.reason}")
    assert shown, f"moves nothing by {SHOWN_S:g} s"
    for outcome in shown:
        assert outcome.findings[0].kind == "regression", outcome.group
        assert outcome.named, outcome.reason
        if fault.term == "scheduling":
            schedule = outcome.ladder["schedule"]
            assert schedule["first"]["why"]
            assert schedule["share"] < lab.baseline(outcome.group).ladder["schedule"]["share"] == 1
