"""Pipeline parallel: stages, batches in flight, bubbles; by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import Make, config, in_ms, simulate

from simulator.fleet import CompiledFleet, PlainFleet
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.functions import Constant, Linear

both = pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])


def staged_step(host: float = 0.0) -> CompiledStepTime:
    """8 ms of layers and 1 ms a token, 2 ms of head, 1 ms between stages."""
    return CompiledStepTime(
        forward=[(8e-3, Constant()), (1e-3, Linear("tokens"))],
        head=[(2e-3, Constant())],
        hop=[(1e-3, Constant())],
        host=[(host, Constant())],
    )


@both
def test_two_stages_by_hand(make: Make) -> None:
    # prompts of 8 that fill the budget: chunks of 8 tokens, 8 + 8 ms of layers, 8 a stage
    found = simulate(
        (0.0, 8, 3), (0.0, 8, 3), make=make, model=staged_step(),
        settings=config(stage_layers=(2, 2), max_num_batched_tokens=8),
    )  # fmt: skip
    steps = found["steps"]
    start, end = in_ms(steps["start_s"]), in_ms(steps["end_s"])
    # r0's prompt in stage 0 until 8, hop, stage 1 until 17, head until 19; r1's a stage behind:
    # stage 0 until 16, stage 1 is free at 19, out at 19 + 8 + 2; decodes are 9 ms, 4.5 a stage
    assert list(zip(start, end, strict=True))[:2] == [(0, 19), (0, 29)]
    assert list(zip(start, end, strict=True))[2] == (19, max(19 + 4.5 + 1, 29) + 4.5 + 2)
    assert steps["running"][:2] == [1, 2]
    assert in_ms(steps["forward_s"])[:2] == [19, 19]
    assert in_ms(found["requests"]["first_token_s"]) == [19, 29]


@both
def test_a_request_alone_is_in_one_batch_at_a_time(make: Make) -> None:
    found = simulate(
        (0.0, 4, 5), make=make, model=staged_step(), settings=config(stage_layers=(2, 2))
    )  # fmt: skip
    steps = found["steps"]
    assert [a >= b for a, b in zip(steps["start_s"][1:], steps["end_s"], strict=False)] == [
        True
    ] * 4


@both
def test_chunks_of_a_prompt_follow_each_other_through_the_stages(make: Make) -> None:
    found = simulate(
        (0.0, 16, 1), make=make, model=staged_step(),
        settings=config(stage_layers=(2, 2), max_num_batched_tokens=8),
    )  # fmt: skip
    assert in_ms(found["steps"]["start_s"]) == [0, 0]
    assert in_ms(found["steps"]["end_s"]) == [19, 29]


lengths = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 20), st.integers(1, 6)), min_size=1, max_size=8
)


@settings(deadline=None, max_examples=50)
@given(lengths, st.integers(1, 4))
def test_stages_never_overlap_themselves_and_one_stage_has_no_bubble(
    rows: list[tuple[int, int, int]], stages: int
) -> None:
    rows = sorted((float(ms), prompt, output) for ms, prompt, output in rows)
    layers = (3,) * stages
    found = simulate(
        *rows, make=CompiledFleet, model=staged_step(), settings=config(stage_layers=layers)
    )
    steps, ends = found["steps"], in_ms(found["steps"]["end_s"])
    assert sum(steps["prefill_tokens"]) == sum(prompt for _, prompt, _ in rows)
    assert found["requests"]["output_tokens"] == [output for *_, output in rows]
    tokens = [a + b for a, b in zip(steps["prefill_tokens"], steps["decode_tokens"], strict=True)]
    last = [(8 + n) / stages + 2 for n in tokens]  # what each spends in the last stage
    for before, after, busy in zip(ends, ends[1:], last[1:], strict=False):
        assert after >= before + busy - 1e-6
    for start, end, n in zip(in_ms(steps["start_s"]), ends, tokens, strict=True):
        least = 8 + n + 2 + (stages - 1)
        assert end - start >= least - 1e-6
        if stages == 1:  # PP = 1: a batch is never held up
            assert end - start == pytest.approx(least)
