"""What a sweep's rows say, on tables small enough to see the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from validation.whatif import KnownError, analyse, slo_state

SUMMARY: dict[str, Any] = {
    "axes": ["replicas", "seats"],
    "objective": {"name": "tokens_per_s", "label": "tokens", "unit": "", "more_is_better": True},
    "slos": {"ttft.p99": 1.0},
    "prices": {},
}


def row(replicas: int, seats: int, tokens: float, ttft: float, **more: Any) -> dict[str, Any]:
    return {
        "status": "ok", "reason": None, "replicas": replicas, "seats": seats, "gpus": replicas,
        "tokens_per_s": tokens, "objective": tokens, "ttft_p99_s": ttft, "meets_slos": ttft <= 1.0,
    } | more  # fmt: skip


ROWS = [
    row(1, 8, 100.0, 0.90),
    row(1, 16, 104.0, 1.04),  # fails, by less than the error
    row(2, 8, 101.0, 0.50),  # more than the first by less than the error
    row(2, 16, 80.0, 0.40),
    row(3, 8, 300.0, 2.00),  # fails for certain
    {"status": "infeasible", "reason": "gpus: 9", "replicas": 9, "seats": 8},
]
KNOWN = KnownError("card", {"throughput.mean": 0.02, "ttft.p99": 0.05})


def test_the_best_and_what_cannot_be_told_from_it() -> None:
    found = analyse(SUMMARY, ROWS, KNOWN)
    assert (found.best, found.certain, found.feasible) == (2, 2, [0, 1, 2, 3, 4])
    assert found.slo_states == {0: "meets", 1: "undecided", 2: "meets", 3: "meets", 4: "fails"}
    assert found.like_best == [1, 0]  # one may be better if it meets the SLO, one is as good
    assert found.reasons == {"infeasible: gpus: 9": [5]}
    unknown = analyse(SUMMARY, ROWS, None)
    assert (unknown.best, unknown.like_best, unknown.objective_error) == (2, [], None)


def test_what_an_axis_does_is_seen_with_the_others_held() -> None:
    effects = {e.axis: e for e in analyse(SUMMARY, ROWS[:4], KNOWN).effects}
    seats = effects["seats"]
    assert (seats.groups, seats.alone) == (2, np.mean([4 / 102, 21 / 90.5]))
    assert seats.levels == [("8", 2, 100.5), ("16", 2, 92.0)]
    assert not seats.undecided
    replicas = effects["replicas"]
    assert replicas.alone == np.mean([1 / 100.5, 24 / 92])
    values = np.array([100.0, 104.0, 101.0, 80.0])
    between = 2 * ((102 - values.mean()) ** 2 + (90.5 - values.mean()) ** 2)
    assert np.isclose(replicas.share, between / ((values - values.mean()) ** 2).sum())


def test_an_effect_below_the_known_error_is_undecided() -> None:
    rows = [row(1, 8, 100.0, 0.5), row(1, 16, 101.0, 0.5)]
    effect = analyse(SUMMARY | {"axes": ["seats"]}, rows, KNOWN).effects[0]
    assert effect.undecided
    assert not analyse(SUMMARY | {"axes": ["seats"]}, rows, None).effects[0].undecided


def test_the_error_of_what_follows_from_other_statistics() -> None:
    assert KNOWN.of("gpus") == 0.0
    assert KNOWN.of("cost_per_million_tokens") == 0.02
    assert KNOWN.of("ttft_p99_s") == 0.05
    assert KNOWN.of("goodput", ["ttft.p99"]) == 0.05
    assert KNOWN.of("goodput", ["ttft.p99", "tpot.p99"]) is None  # one of them is not known
    assert slo_state({"ttft_p99_s": None}, {"ttft.p99": 1.0}, KNOWN) == "fails"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int, int]]) -> None:
    rows = [row(gpus, 8, float(tokens), ttft / 2) for gpus, tokens, ttft in points]
    found = analyse(SUMMARY, rows, None)
    costs = [
        [-r[c] if c == "tokens_per_s" else r[c] for c in found.front_columns] for r in rows
    ]  # fmt: skip

    def beaten(i: int) -> bool:
        return any(
            all(a <= b for a, b in zip(other, costs[i], strict=True)) and other != costs[i]
            for other in costs
        )

    assert sorted(found.front) == [i for i in range(len(rows)) if not beaten(i)]
    assert found.front
