"""Our schedulers against vLLM's own ``Scheduler`` and ``AsyncScheduler`` objects.

Both are driven with the same arrivals, step order and output tokens, no model run. Every
step's batch, preemptions, free blocks, running order and waiting count must be equal.
"""

from __future__ import annotations

from collections import Counter
from difflib import unified_diff
from pathlib import Path

import pytest
from scheduler_world import Case, Ours, Trace, random_case, run

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

CASES = 300  # of each kind
AT_LEAST = 50
MUST_BE_SEEN = (
    "preemption",
    "prefix hit",
    "evicted cached block",
    "capped chunk",
    "priority victim already scheduled",
)


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


def test_same_decisions_as_vllm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vllm_side import VllmSide

    seen: Counter[str] = Counter()
    steps = 0
    for seed in range(2 * CASES):
        case = random_case(seed, asynchronous=bool(seed % 2))
        theirs, mine = VllmSide(case, str(tmp_path)), Ours(case.config)
        wanted, got = run(theirs, case), run(mine, case)
        assert wanted.steps == got.steps, first_divergence(case, wanted, got)
        seen.update(k for k, n in (theirs.seen | mine.seen).items() if n)
        steps += len(got.steps)
    with capsys.disabled():
        print(f"\n{2 * CASES} cases, {steps} steps equal; cases that saw:", dict(seen))
    assert {k: seen[k] for k in MUST_BE_SEEN if seen[k] < AT_LEAST} == {}
