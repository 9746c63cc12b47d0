"""Our schedulers against vLLM's own ``Scheduler`` and ``AsyncScheduler`` objects.

All are driven with the same arrivals, step order and output tokens, no model run. Every
step's batch, preemptions, free blocks, running order and waiting count must be equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

import pytest
from scheduler_world import (
    Case,
    Ours,
    Trace,
    random_case,
    random_remote_case,
    random_staged_case,
    run,
    sharing,
)  # fmt: skip

from simulator.scheduling.fast import FastScheduler

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]  # torch warns
pytest.importorskip("vllm")

CASES = 300  # of each kind
AT_LEAST = 50
MUST_BE_SEEN = (
    "preemption",
    "prefix hit",
    "evicted cached block",
    "capped chunk",
    "priority victim already scheduled",
    "abort",
)


REMOTE_MUST_BE_SEEN = ("load", "load after a prefix hit", "kept blocks")


def first_divergence(case: Case, vllm: Trace, ours: Trace) -> str:
    """A diff of the first step that differs, with the step before it."""
    same = 0
    pairs = zip(vllm.steps, ours.steps, strict=False)
    while (pair := next(pairs, None)) and pair[0] == pair[1]:
        same += 1
    names = ("batch", "preempted", "free_blocks", "running", "waiting")

    def lines(trace: Trace) -> list[str]:
        shown = trace.steps[max(0, same - 1) : same + 1]
        return [f"{n} {v}" for step in shown for n, v in zip(names, step, strict=True)]

    diff = "\n".join(unified_diff(lines(vllm), lines(ours), "vllm", "ours", lineterm="", n=9))
    return f"case {case.seed}, step {same}: {case.config}\n{diff}"


@pytest.mark.parametrize(
    ("draw", "must_be_seen"),
    [
        (random_case, MUST_BE_SEEN),
        (random_staged_case, (*MUST_BE_SEEN, "three batches in flight")),
        (random_remote_case, (*MUST_BE_SEEN[:3], "abort", *REMOTE_MUST_BE_SEEN)),
    ],
)
def test_same_decisions_as_vllm(
    draw: Callable[..., Case],
    must_be_seen: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vllm_side import VllmSide

    seen: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for seed in range(2 * CASES):
        case = draw(seed, asynchronous=bool(seed % 2))
        theirs = VllmSide(case, str(tmp_path))
        wanted = run(theirs, case)
        plain = Ours(case.config)
        fast = Ours(case.config, FastScheduler, sharing(case), check=seed % 4 < 2)
        for side in (plain, fast):
            got = run(side, case)
            assert wanted.steps == got.steps, first_divergence(case, wanted, got)
        seen.update(k for k, n in (theirs.seen | plain.seen | wanted.seen).items() if n)
        steps["all"] += len(wanted.steps)
        assert isinstance(fast.scheduler, FastScheduler)
        if case.config.windows == (None,):  # the fast scheduler has no other
            steps["fast"] += len(wanted.steps)
            steps["quiet"] += fast.scheduler.quiet_steps
    with capsys.disabled():
        print(
            f"\n{draw.__name__}: {2 * CASES} cases: {steps['all']} steps equal for the "
            f"reference scheduler, {steps['fast']} of them compiled and equal for the fast one, "
            f"which took {steps['quiet'] / steps['fast']:.1%} without a look at their rows; "
            f"cases that saw: {dict(seen)}"
        )
    assert {k: seen[k] for k in must_be_seen if seen[k] < AT_LEAST} == {}
    if draw is not random_staged_case:  # whose requests leave out steps while in a stage
        assert steps["quiet"] > 0.3 * steps["fast"]
