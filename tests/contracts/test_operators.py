"""What every operator family promises, whatever its shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator.operators import KEYS, OPERATORS, Device, family_named
from simulator.operators.lines import group_numbers
from simulator.operators.model import fit_operator
from traces.errors import ConfigError
from traces.schema import KERNELS

HEADS = {"heads": 8, "kv_heads": 2, "head_dim": 128, "window": 0, "kv_dtype": "bfloat16"}
MOE = {"hidden": 512, "inter": 256, "top_k": 2, "experts": 8, "local_experts": 8, "tp": 1, "ep": 1}
ROWS: dict[str, list[dict[str, Any]]] = {
    "linear": [{"m": m, "n": n, "k": 512} for m in (1, 8, 60) for n in (64, 4096)],
    "attention_prefill": [
        {"batch": b, "query_tokens": q, "context_tokens": c, "query_sum": b * q, **HEADS}
        for b in (1, 4) for q, c in ((16, 0), (700, 64))
    ],
    "attention_decode": [
        {"batch": b, "query_tokens": 1, "context_tokens": c, **HEADS}
        for b in (1, 4) for c in (1, 700)
    ],
    "attention_mixed": [
        {"query_lens": [64, 1], "context_lens": [0, 900], **HEADS},
        {"query_lens": [16, 1, 1], "context_lens": [32, 7, 7000], **HEADS},
    ],
    "mla_prefill": [
        {"batch": b, "query_tokens": q, "context_tokens": 0, "heads": 16, "kv_dtype": "fp8"}
        for b in (1, 4) for q in (16, 700)
    ],
    "mla_decode": [
        {"batch": b, "query_tokens": 1, "context_tokens": c, "heads": 16, "kv_dtype": "fp8"}
        for b in (1, 4) for c in (1, 700)
    ],
    "grouped_gemm": [{"tokens": t, "load": "balanced", **MOE} for t in (1, 40, 900)],
    "router": [{"tokens": t, "hidden": 512, "experts": 8, "layer": "gate"} for t in (1, 900)],
    "elementwise": [{"tokens": t, "hidden": 512, "layer": "norm"} for t in (1, 900)],
    "sampling": [{"tokens": t, "hidden": 32000, "layer": "sampler"} for t in (1, 64)],
    **{
        name: [{"bytes": size, "ranks": 4, "nodes": 1} for size in (512, 1 << 20)]
        for name in ("all_reduce", "all_gather", "reduce_scatter", "send_recv")
    },
    "all_to_all": [
        {"tokens": t, "hidden": 512, "top_k": 2, "ranks": 4, "nodes": 1, "layer": "dispatch"}
        for t in (1, 256)
    ],
}  # fmt: skip
DEVICE = Device(sms=100, peak_flops=1e15)


def rows_of(name: str) -> pd.DataFrame:
    return pd.DataFrame([{"operator": name, "dtype": "bfloat16", **row} for row in ROWS[name]])


def test_every_family_has_a_sample() -> None:
    assert sorted(ROWS) == sorted(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
class TestFamily:
    def test_shape_has_one_finite_entry_a_row(self, name: str) -> None:
        rows = rows_of(name)
        shape = family_named(name).shape(rows, DEVICE)
        for part in (shape.work, shape.features, shape.place):
            assert part
            assert {len(v) for v in part.values()} == {len(rows)}
        for kind, amount in shape.work.items():
            assert np.isfinite(amount).all(), kind
            assert (amount >= 0).all(), kind
        assert shape.work["launch"].tolist() == [1.0] * len(rows)

    def test_order_of_rows_does_not_matter(self, name: str) -> None:
        rows = rows_of(name)
        family = family_named(name)
        there, back = family.shape(rows, DEVICE), family.shape(rows[::-1], DEVICE)
        for kind, amount in there.work.items():
            np.testing.assert_array_equal(amount, back.work[kind][::-1])

    def test_more_work_costs_more_bytes_or_flops(self, name: str) -> None:
        work = family_named(name).shape(rows_of(name), DEVICE).work
        most = work.get("flops", work["bytes"]) + work["bytes"]
        assert most[-1] > most[0]

    def test_axes_are_coordinates_and_points_are_told_apart(self, name: str) -> None:
        family = family_named(name)
        place = family.shape(rows_of(name), DEVICE).place
        for axis in family.axes:
            assert {axis.along, *axis.fixed} <= set(place)
            assert axis.along not in axis.fixed
        numbers = group_numbers(place, list(place))
        assert len(set(numbers)) == len(numbers)

    def test_names_are_columns_of_the_table(self, name: str) -> None:
        family = family_named(name)
        assert {*family.labels, *family.keyed} <= set(KERNELS.by_name)
        assert not {*family.keyed} & {*KEYS}

    def test_a_fit_returns_what_was_measured(self, name: str) -> None:
        family = family_named(name)
        shape = family.shape(rows_of(name), DEVICE)
        seconds = np.linspace(3e-5, 9e-5, len(ROWS[name]))
        fitted = fit_operator(name, family, dict.fromkeys(KEYS, ""), shape, seconds)
        found = fitted.predict(shape, DEVICE)
        np.testing.assert_allclose(found.seconds, seconds, rtol=1e-9)
        assert not found.extrapolated.any()


def test_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        family_named("lineer")
