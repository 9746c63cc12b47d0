"""Step times: the compiled evaluation against the functions it stands for."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from simulator.engine.layout import Shape
from simulator.step_time.base import BatchShape
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.functions import (
    ActiveExperts,
    Attention,
    Axis,
    Beyond,
    Constant,
    Dense,
    Linear,
    Shared,
    Table,
    UpTo,
)
from traces.errors import ConfigError

PS = 10**12
NAMES = [f.name for f in fields(BatchShape)]


def shape_from(rng: random.Random) -> BatchShape:
    return BatchShape(**{name: rng.randint(1, 5000) for name in NAMES})  # 0: steps alone


@pytest.mark.parametrize("halved", [0, 1])
def test_what_ranks_share_over_prompts_and_decodes(halved: int) -> None:
    rng = np.random.default_rng(halved)
    grid, beside = np.array([0.0, 1, 10, 4000]), np.array([0.0, 3, 500])
    values = rng.random((4, len(beside), len(grid)))
    padded = [0.0, 8, 8, 16]
    step = CompiledStepTime(forward=[(2.0, Shared(grid, values, padded, beside))])
    for draw in range(6):
        plane = RegularGridInterpolator((beside, grid), values[draw % 4])
        for prompts, tokens, most in ((0, 3, 9), (7, 11, 4), (3000, 3200, 900), (5, 6, 2)):
            shape = BatchShape(
                tokens=2, engine_tokens=tokens, engine_prefill=prompts, most_tokens=most,
                draw=draw, halved=halved,
            )  # fmt: skip
            parts = 1 + halved
            others = (padded[most] if most < len(padded) else tokens) - prompts
            expected = 2.0 * parts * plane((others / parts, prompts / parts))
            assert step.times(shape).forward == pytest.approx(PS * float(expected), rel=1e-9)


def test_the_engine_has_every_feature_of_a_shape() -> None:
    assert set(Shape.__annotations__) == {*NAMES, "prefill_rows"}


def test_same_numbers_as_in_python() -> None:
    rng = random.Random(0)
    functions = [
        Constant(), *(Linear(name) for name in Shape.__annotations__), UpTo("tokens", 64),
        Beyond("rows", 100), ActiveExperts(64, 6),
    ]  # fmt: skip
    parts = [
        [(rng.uniform(0, 1e-5), f) for f in rng.sample(functions, len(functions))] for _ in range(5)
    ]
    model = CompiledStepTime(*parts)
    for _ in range(1000):
        shape = shape_from(rng)
        wanted = tuple(round(_sum(part, shape) * PS) for part in parts)
        assert model.times(shape) == wanted
        assert model.last_shape() == shape
    assert model.coverage() == {"steps": 1000, "extrapolated": 0}


def _sum(part: list[tuple[float, Any]], shape: BatchShape) -> float:
    total = 0.0
    for coefficient, function in part:  # in this order: floats are not associative
        total += coefficient * function(shape)
    return total


@pytest.mark.parametrize("log", [False, True])
def test_tables_interpolate_between_grid_points(log: bool) -> None:
    rng = np.random.default_rng(0)
    x, y = np.array([1, 3, 10, 40, 200.0]), np.array([2, 50, 51, 900.0])
    values = rng.uniform(0.1, 2.0, (len(y), len(x)))
    line = Table(Axis("tokens", x, log), values[:1], log=log)
    plane = Table(Axis("tokens", x, log), values, Axis("decode_context", y, log), log)
    model = CompiledStepTime([(1.0, line)], [(2.0, plane)])
    same = (np.log if log else np.asarray), (np.exp if log else np.asarray)
    grid = RegularGridInterpolator((same[0](y), same[0](x)), same[0](values))
    for tokens in range(1, 201, 7):
        for context in range(2, 901, 31):
            times = model.times(BatchShape(tokens=tokens, decode_context=context))
            at_x, at_y = same[0](float(tokens)), same[0](float(context))
            wanted = same[1](np.interp(at_x, same[0](x), same[0](values[0])))
            assert times.forward == pytest.approx(wanted * PS, rel=1e-9)
            assert times.host == pytest.approx(2 * same[1](grid((at_y, at_x))) * PS, rel=1e-9)
    assert model.coverage()["extrapolated"] == 0


def test_beyond_its_edges_a_table_is_clamped_and_the_step_counted() -> None:
    plane = Table(
        Axis("decodes", [2, 4]), [[1.0, 2.0], [3.0, 4.0]], Axis("decode_context", [10, 20])
    )
    model = CompiledStepTime([(1.0, plane)], ranges={"rows": 50})

    def forward(**shape: int) -> float:
        return model.times(BatchShape(**shape)).forward / PS

    assert forward(decodes=4, decode_context=20) == 4.0
    assert model.coverage()["extrapolated"] == 0
    assert forward(decodes=1, decode_context=10) == 1.0
    assert forward(decodes=9, decode_context=15) == 3.0
    assert forward(decodes=3, decode_context=99) == 3.5
    assert forward(decodes=3, decode_context=10, rows=51) == 1.5
    assert model.coverage() == {"steps": 5, "extrapolated": 4}
    assert model.outside() == {"rows": 1}  # the table has no name
    assert forward(decodes=0, decode_context=0) == 0.0  # no such work in the step
    assert model.coverage()["extrapolated"] == 4


def test_attention_is_multilinear_in_chunk_context_decodes_and_mean() -> None:
    rng = np.random.default_rng(1)
    axes = [np.array([0, 16, 64, 256.0]), np.array([0, 100, 1000.0]), np.array([0, 1, 8, 40.0]),
            np.array([0, 50, 500, 2000.0])]  # fmt: skip
    seconds = rng.uniform(1e-5, 1e-3, [len(axis) for axis in axes])
    spread = rng.uniform(0.0, 0.5, (2, 4, 4))
    model = CompiledStepTime([(32.0, Attention(axes, seconds, spread, 0.6))])
    table = RegularGridInterpolator(axes, seconds)
    slopes = [RegularGridInterpolator(axes[2:], part) for part in spread]
    for _ in range(300):
        query, context = int(rng.integers(16, 257)), int(rng.integers(100, 1001))
        contexts = rng.integers(900, 1200, int(rng.integers(1, 41)))
        shape = BatchShape(
            decodes=len(contexts), decode_context=int(contexts.sum()),
            decode_context_sq=int((contexts**2).sum()), prefill_tokens=query,
            prefill_pairs=query * context + query * (query + 1) // 2,
        )  # fmt: skip
        at = (len(contexts), contexts.mean())
        varied = 1 + contexts.std() / contexts.mean() * slopes[1](at)
        wanted = 32 * table((query, context, *at)) * varied
        assert model.times(shape).forward == pytest.approx(wanted * PS, rel=1e-9)
    assert model.coverage()["extrapolated"] == 0
    # between nothing and the smallest measured lies the smallest, beyond the edge; both counted
    assert model.times(BatchShape(decodes=1, decode_context=3)).forward == pytest.approx(
        32 * seconds[0, 0, 1, 1] * PS
    )
    assert model.coverage()["extrapolated"] == 1
    assert model.times(BatchShape(decodes=90, decode_context=90 * 50)).forward == pytest.approx(
        32 * seconds[0, 0, 3, 1] * PS
    )
    assert model.coverage()["extrapolated"] == 2


def test_a_dense_table_has_a_value_for_each_number() -> None:
    model = CompiledStepTime([(2.0, Dense("tokens", [0.0, 1.0, 5.0]))])
    found = [model.times(BatchShape(tokens=n)).forward / PS for n in (0, 1, 2, 3)]
    assert found == [0.0, 2.0, 10.0, 10.0]
    assert model.coverage()["extrapolated"] == 1


@pytest.mark.parametrize(
    "table",
    [
        Table(Axis("tokens", [1, 2]), [[1.0, 2.0, 3.0]]),
        Table(Axis("tokens", [2, 1]), [[1.0, 2.0]]),
        Table(Axis("tokens", [0, 1], log=True), [[1.0, 2.0]]),
        Table(Axis("tokens", [1]), [[1.0]]),
        Table(Axis("tokens", [1, 2]), [[1.0, 2.0]], Axis("rows", [1, 2])),
    ],
)
def test_tables_that_are_none_are_refused(table: Table) -> None:
    with pytest.raises(ConfigError, match="tokens"):
        CompiledStepTime([(1.0, table)])
