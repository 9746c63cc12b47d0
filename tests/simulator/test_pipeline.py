"""Pipelined steps: the recurrence against an event heap, closed forms, bounds, bubbles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline_oracle import play

from simulator.pipeline import (
    STAGES,
    STRATEGIES,
    Lanes,
    Pipeline,
    Work,
    create_strategy,
    idle_times,
)
from traces.errors import ConfigError

A, X, F, Y, S = range(len(STAGES))
LINKS = ("a2f", "f2a")


@st.composite
def steps(draw: st.DrawFn) -> Pipeline:
    """Any strategy, size and lanes, with any stage times, zeros and ties among them."""
    strategy = create_strategy(draw(st.sampled_from(sorted(STRATEGIES))))
    one_device = draw(st.booleans())
    attention = draw(st.integers(1, 3))
    ffn = attention if one_device else draw(st.integers(1, 3))
    layers, micro_batches = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kinds = draw(st.none() | st.lists(st.integers(0, 2), min_size=layers + 1, max_size=layers + 1))
    late = st.lists(st.integers(0, 900), min_size=ffn, max_size=ffn)
    latency_ps = draw(st.none() | st.fixed_dictionaries(dict.fromkeys(LINKS, late)))
    lanes = Lanes(attention, ffn, one_device)
    pipeline = Pipeline(strategy, layers, micro_batches, lanes, kinds, latency_ps)
    most = draw(st.sampled_from([3, 1000, 10**12]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pipeline.durations[...] = rng.integers(0, most + 1, pipeline.durations.shape)
    return pipeline


def duration_of(pipeline: Pipeline, work: Work, lane: int) -> int:
    kind = pipeline.kinds[work.layer]
    return int(pipeline.durations[STAGES.index(work.stage), kind, work.micro_batch, lane])


@settings(max_examples=300, deadline=None)
@given(steps())
def test_the_recurrence_equals_the_event_heap(pipeline: Pipeline) -> None:
    times = play(
        pipeline.strategy, pipeline.layers, pipeline.micro_batches, pipeline.lanes,
        lambda work, lane: duration_of(pipeline, work, lane), pipeline.latency_ps,
    )  # fmt: skip
    assert pipeline.evaluate() == max(end for _, end in times.values())
    spans = {(s.work, s.lane): (s.start_ps, s.end_ps) for s in pipeline.spans()}
    # the heap has no piece that the recurrence lacks, nor the reverse; ends are equal, and
    # where a piece takes time so are starts
    assert spans == times


@settings(max_examples=100, deadline=None)
@given(steps(), st.sampled_from(range(len(STAGES))))
def test_bounds_and_monotony(pipeline: Pipeline, stage: int) -> None:
    whole = pipeline.evaluate()
    idle = idle_times(pipeline)
    pieces = [(p.work, duration_of(pipeline, p.work, p.lane)) for p in pipeline.work]
    late = sum(pipeline.latency_ps.get(p.work.stage, [0] * 9)[p.lane] for p in pipeline.work)
    assert whole <= sum(ps for _, ps in pieces) + late
    for one in idle:  # nothing is idle for nothing
        assert one.busy_ps + sum(one.waited_ps.values()) == whole
        assert all(ps > 0 for ps in one.waited_ps.values())
    for micro_batch in range(pipeline.micro_batches):  # a micro-batch passes stage after stage
        path: dict[tuple[int, str], int] = {}
        for work, ps in pieces:
            if work.micro_batch == micro_batch and work.stage != "shared":
                key = (work.layer, work.stage)
                path[key] = max(path.get(key, 0), ps)
        if max(pipeline.lanes[:2]) == 1:
            assert whole >= sum(path.values())
    pipeline.durations[stage] //= 2  # a faster stage never makes the step slower
    assert pipeline.evaluate() <= whole


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 10**10), min_size=4, max_size=4),
    st.integers(0, 10**10), st.integers(1, 61), st.integers(1, 6),
)  # fmt: skip
def test_ping_pong_has_its_closed_form(
    stages: list[int], closing: int, layers: int, m: int
) -> None:
    step = Pipeline(create_strategy("ping_pong"), layers, m, kinds=[0] * layers + [1])
    for stage, ps in enumerate(stages):
        step.durations[stage, 0] = ps
    step.durations[A, 1, -1] = closing  # the micro-batch that returns last closes the step
    total, most = sum(stages), max(stages)
    wanted = layers * total + (m - 1) * most if m * most <= total else (
        layers * m * most + total - most
    )  # fmt: skip
    assert step.evaluate() == wanted + closing
    alone = Pipeline(create_strategy("none"), layers, 1, kinds=[0] * layers + [1])
    alone.durations[...] = step.durations[:, :, -1:]
    assert alone.evaluate() == layers * total + closing


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 4), st.sampled_from(sorted(STRATEGIES))
)
def test_one_device_without_links_takes_the_sum(seed: int, layers: int, m: int, name: str) -> None:
    strategy = create_strategy(name)
    step = Pipeline(strategy, layers, m, Lanes(one_device=True))
    step.durations[...] = np.random.default_rng(seed).integers(0, 10**9, step.durations.shape)
    step.durations[[X, Y]] = 0
    computing = [A, F, S] if strategy.shared else [A, F]
    assert step.evaluate() == step.durations[A].sum() + step.durations[computing[1:], :layers].sum()


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_three_equal_stages_never_wait(layers: int) -> None:
    """Attention, transfer (both ways together) and FFN of equal length, three micro-batches."""
    step = Pipeline(create_strategy("three_stage"), layers, 3, kinds=[0] * layers + [1])
    step.durations[[A, F], 0], step.durations[[X, Y], 0] = 1000, 500
    assert step.evaluate() == layers * 3 * 1000 + 500 + 1000 + 500
    assert {i.resource: i.busy_ps for i in idle_times(step)} == dict.fromkeys(
        ("attention", "network", "ffn"), layers * 3 * 1000
    )


def test_the_shared_expert_hides_behind_the_routed_ones() -> None:
    step = Pipeline(create_strategy("shared_expert"), 1, 1)
    step.durations[[A, X, F, Y], 0] = np.array([10, 2, 6, 2])[:, None, None]
    step.durations[S, 0] = 7
    assert step.evaluate() == 20
    step.durations[S, 0] = 11
    assert step.evaluate() == 21


def test_bubbles_by_hand() -> None:
    """Two micro-batches, one layer::

    attention  0 0 1 1 . . . . . . . . (each closes in no time)
    a2f        . . 0 . 1
    ffn        . . . 0 0 0 1 1 1
    f2a        . . . . . . 0 . . 1
    """
    step = Pipeline(create_strategy("ping_pong"), 1, 2)
    step.durations[[A, X, F, Y], 0] = np.array([2, 1, 3, 1])[:, None, None]
    assert step.evaluate() == 10
    idle = {one.resource: (one.busy_ps, one.waited_ps) for one in idle_times(step)}
    assert idle == {
        # for its first micro-batch to come back, and then for the second
        "attention": (4, {"ffn": 4, "f2a": 2}),
        "a2f": (2, {"attention": 3, "end": 5}),
        "ffn": (6, {"attention": 2, "a2f": 1, "end": 1}),
        "f2a": (2, {"attention": 2, "a2f": 1, "ffn": 5}),
    }


def test_an_unknown_strategy_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"pipeline.policy: unknown 'pingpong'; did you mean 'ping_pong'"
    ):
        create_strategy("pingpong")
