"""Step times of pipelined deployments: cut, priced and overlapped as said, compiled."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.pipeline import STAGES, Lanes, Pipeline, create_strategy
from simulator.step_time.base import BatchShape
from simulator.step_time.functions import Constant, Dense, Linear, Shared
from simulator.step_time.pipelined import PipelinedStepTime, StageCost
from simulator.step_time.spans import StepAt, spans_table
from traces.check import table_faults
from traces.schema import SPANS

PS = 10**12
LAYERS, MOST = 5, 4
KINDS = (0, 1, 1, 0, 1, 2)
NAMES = [f.name for f in fields(BatchShape)]
RNG = np.random.default_rng(7)
COSTS = [
    StageCost("attention", 0, [(3e-6, Constant()), (2e-9, Linear("decode_context"))]),
    StageCost("attention", 1, [(5e-6, Constant()), (1e-9, Linear("decode_context_max"))]),
    StageCost("attention", 2, [(1e-6, Linear("sampled"))]),
    StageCost("a2f", 0, [(4e-7, Linear("tokens"))]),
    StageCost("a2f", 1, [(6e-7, Linear("tokens"))]),
    StageCost("ffn", 0, [(1.0, Dense("tokens", RNG.uniform(1e-6, 9e-5, 100)))], lane=0),
    StageCost("ffn", 0, [(1.0, Dense("tokens", RNG.uniform(1e-6, 9e-5, 100)))], lane=1),
    StageCost("ffn", 1, [(1.0, Dense("tokens", RNG.uniform(1e-6, 9e-5, 100)))]),
    StageCost("f2a", 0, [(4e-7, Linear("tokens"))]),
    StageCost("f2a", 1, [(7e-7, Linear("tokens"))]),
]


def pipelines(name: str = "ping_pong", most: int = MOST) -> list[Pipeline]:
    strategy, lanes = create_strategy(name), Lanes(1, 2)
    return [Pipeline(strategy, LAYERS, m, lanes, KINDS) for m in range(1, most + 1)]


def decode_shape(contexts: list[int]) -> BatchShape:
    n = len(contexts)
    return BatchShape(
        tokens=n, rows=n, sampled=n, decodes=n, decode_context=sum(contexts),
        decode_context_sq=sum(c * c for c in contexts), decode_context_max=max(contexts),
    )  # fmt: skip


def plain(shape: BatchShape, m: int) -> int:
    """The same in Python: cut the shape, call the functions, evaluate the pipeline."""
    pipeline = pipelines()[m - 1]
    for b in range(m):
        values = {}
        for name in NAMES:
            n = getattr(shape, name)
            values[name] = n if name.endswith("_max") else n * (b + 1) // m - n * b // m
        part = BatchShape(**values)
        for cost in COSTS:
            seconds = 0.0
            for coefficient, function in cost.seconds:
                value = (
                    function.values[getattr(part, function.feature)]
                    if isinstance(function, Dense) else function(part)
                )  # fmt: skip
                seconds += coefficient * value
            lanes = range(2) if cost.lane is None else [cost.lane]
            for lane in lanes if cost.stage != "attention" else [0]:
                pipeline.durations[STAGES.index(cost.stage), cost.kind, b, lane] = round(
                    seconds * PS
                )
    return pipeline.evaluate()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=90), st.integers(1, MOST))
def test_compiled_equals_plain(contexts: list[int], m: int) -> None:
    shape = decode_shape(contexts)
    model = PipelinedStepTime(COSTS, pipelines(most=m), least=m, outside=[(1e-6, Constant())])
    assert model.times(shape).forward == plain(shape, min(m, len(contexts))) + 10**6
    assert model.times(shape).forward == model.pipeline_of(shape).evaluate() + 10**6
    assert model.pipeline_of(shape).micro_batches == min(m, len(contexts))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=90))
def test_the_best_number_of_micro_batches_is_chosen(contexts: list[int]) -> None:
    shape = decode_shape(contexts)
    auto = PipelinedStepTime(COSTS, pipelines(), least=1)
    every = [plain(shape, m) for m in range(1, min(MOST, len(contexts)) + 1)]
    assert auto.times(shape).forward == min(every)
    assert auto.pipeline_of(shape).micro_batches == 1 + every.index(min(every))


def test_a_step_beyond_a_stage_s_table_is_counted() -> None:
    model = PipelinedStepTime(COSTS, pipelines(most=2), least=2)
    model.times(decode_shape([9] * 199))
    assert model.coverage() == {"steps": 1, "extrapolated": 1}
    model.times(decode_shape([9] * 198))
    assert model.coverage() == {"steps": 2, "extrapolated": 1}


def test_host_and_gap_are_not_cut() -> None:
    host, gap = [(1e-3, Linear("rows"))], [(2e-3, Constant())]
    model = PipelinedStepTime(COSTS, pipelines(most=2), least=2, host=host, gap=gap)
    times = model.times(decode_shape([9] * 10))
    assert (times.host, times.gap) == (10 * PS // 1000, 2 * PS // 1000)


@pytest.mark.parametrize("prefill", [1, 700])
def test_tokens_of_a_prompt_are_cut_too(prefill: int) -> None:
    shape = replace(
        decode_shape([50] * 9), tokens=9 + prefill, rows=10, prefill_tokens=prefill,
        prefill_pairs=prefill * (prefill + 1) // 2,
    )  # fmt: skip
    costs = [c for c in COSTS if c.stage != "ffn"]
    costs += [StageCost("ffn", kind, [(1e-6, Linear("tokens"))]) for kind in (0, 1)]
    two, one = (PipelinedStepTime(costs, pipelines(most=m), least=m) for m in (2, 1))
    assert two.times(shape).forward < one.times(shape).forward


def test_spans_of_a_step_lie_within_it() -> None:
    model = PipelinedStepTime(COSTS, pipelines(most=3), least=3, outside=[(5e-6, Constant())])
    shape = decode_shape([70] * 31)
    steps = [StepAt(0, 4, 10**12, shape), StepAt(1, 9, 3 * 10**12, shape)]
    table = spans_table(model, steps, "a", ["f", "g"]).to_pandas()
    assert not table_faults(SPANS, spans_table(model, steps, "a", ["f", "g"]), "spans")
    assert table.groupby(["replica", "stage", "cluster"]).size().to_dict() == {
        (replica, *key): count
        for replica in (0, 1)
        for key, count in {
            ("attention", "a"): 3 * (LAYERS + 1), ("a2f", "a"): 6 * LAYERS,
            ("ffn", "f"): 3 * LAYERS, ("ffn", "g"): 3 * LAYERS,
            ("f2a", "f"): 3 * LAYERS, ("f2a", "g"): 3 * LAYERS,
        }.items()
    }  # fmt: skip
    second = table[table["step"] == 9]
    assert second["start_s"].min() == pytest.approx(3 + 5e-6)
    whole_s = model.times(shape).forward / PS
    assert second["end_s"].max() == pytest.approx(3 + whole_s, rel=1e-12)


def test_each_micro_batch_gets_the_next_draw_and_the_longer_of_two_costs() -> None:
    grid = np.array([1.0, 1000.0])
    curves = Shared(grid, np.array([[1e-6, 1e-6], [5e-6, 5e-6], [2e-6, 2e-6]]))
    costs = [
        StageCost("attention", 0, [(1e-6, Constant())]),
        StageCost("ffn", 0, [(1.0, curves)]),
        StageCost("a2f", 0, [(1e-8, Linear("engine_tokens"))]),
        StageCost("a2f", 0, [(1e-7, Linear("tokens"))], beside=True),
    ]
    pipeline = Pipeline(create_strategy("ping_pong"), 2, 3, Lanes(1, 1), (0, 0, 0))
    model = PipelinedStepTime(costs, [pipeline] * 3, least=3)
    shape = replace(decode_shape([9] * 6), engine_tokens=90, most_tokens=90, most_rows=90, draw=4)
    found = model.pipeline_of(shape).durations[:, 0, :, 0]
    assert found[STAGES.index("ffn")].tolist() == [5 * PS // 10**6, 2 * PS // 10**6, PS // 10**6]
    # 30 tokens of all at 10 ns, 2 of its own at 100 ns: then 60 of its own
    assert found[STAGES.index("a2f")].tolist() == [3 * PS // 10**7] * 3
    alone = replace(decode_shape([9] * 90), draw=4)
    assert model.pipeline_of(alone).durations[1, 0, :, 0].tolist() == [3 * PS // 10**6] * 3
    model.hold(3)
    assert model.pipeline_of(shape).micro_batches == 3
