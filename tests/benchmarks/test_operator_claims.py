"""Operator models against plainer ones, on measurements of others: what their features buy.

Each claim is an error and the bootstrap interval of its difference to the plainer model's, over
groups of rows that share a shape. Skipped without ../shared.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from click.testing import Result

from simulator.operators import fit_library
from simulator.operators.attention import requests_of

pytestmark = pytest.mark.bench
Floats = npt.NDArray[np.float64]
RTX = "kernels/rtx-vllm0.19"
RECORDED = ["routed_tokens", "active_experts", "max_tokens", "load_cv", "load"]
SHAPE = ["hidden", "inter", "experts", "top_k", "tp", "ep"]


def imported(frontier: Callable[..., Result], out: Path, source: str, path: Path) -> pd.DataFrame:
    result = frontier("import-kernels", source, path, "--out", out)
    assert result.exit_code == 0, result.output
    return pd.read_parquet(out / "kernels.parquet")


def miss(predicted: Floats, rows: pd.DataFrame) -> Floats:
    found: Floats = np.abs(predicted / rows["duration_s"].to_numpy() - 1)
    return found


def interval(less: Floats, group: Floats) -> tuple[float, float]:
    """95 % interval of the mean of ``less``, groups resampled."""
    sums, sizes = np.bincount(group, less), np.bincount(group)
    draws = np.random.default_rng(0).integers(len(sums), size=(2000, len(sums)))
    low, high = np.percentile(sums[draws].sum(1) / sizes[draws].sum(1), [2.5, 97.5])
    return float(low), float(high)


def batches(rows: pd.DataFrame) -> pd.DataFrame:
    """Chunk, its context, decodes, mean and variation of their contexts, of each row."""
    found = []
    for queries, contexts in zip(rows["query_lens"], rows["context_lens"], strict=True):
        chunk = int(np.argmax(queries))
        rest = np.delete(contexts, chunk).astype(float)
        found.append((queries[chunk], contexts[chunk], len(rest), rest.mean(), rest.std()))
    return pd.DataFrame(found, columns=["chunk", "context", "decodes", "mean", "spread"])


def at_the_mean(known: pd.DataFrame, seconds: Floats, asked: pd.DataFrame) -> Floats:
    """Measured time of equal contexts, interpolated at the mean context."""
    keys = ["chunk", "context", "decodes"]
    lines = known.assign(s=np.log(seconds), m=known["mean"].round()).groupby([*keys, "m"]).s.mean()
    found = np.empty(len(asked))
    for i, row in enumerate(asked.itertuples()):
        line = lines.loc[(row.chunk, row.context, row.decodes)]
        found[i] = np.interp(np.log1p(row.mean), np.log1p(line.index), line.to_numpy())
    return np.exp(found)


def proxy(known: pd.DataFrame, seconds: Floats, asked: pd.DataFrame) -> Floats:
    """Vidur's (arXiv:2405.05465, 4.2): a forest over the batch as one prefill, and as decodes.

    One prefill as long as the root of the summed squares; decodes of the mean context.
    """
    from sklearn.ensemble import RandomForestRegressor

    def features(b: pd.DataFrame) -> Floats:
        found: Floats = np.c_[b.chunk, b.context, b.decodes, b["mean"], b.decodes * b["mean"]]
        return found

    forest = RandomForestRegressor(100, random_state=0).fit(features(known), np.log(seconds))
    return np.exp(forest.predict(features(asked)))


@pytest.mark.parametrize(("device", "heads"), [("rtx_4090", 32), ("rtx_pro_6000", 32),
                                               ("rtx_pro_6000", 16)])  # fmt: skip
def test_unequal_contexts_are_predicted_from_equal_ones(
    device: str, heads: int, shared: Path, tmp_path: Path, frontier: Callable[..., Result]
) -> None:
    rows = imported(frontier, tmp_path, "rtx-vllm0.19", shared / RTX)
    rows = rows[
        (rows.operator == "attention_mixed") & (rows.layer == "skew") & (rows.device == device)
        & (rows.heads == heads) & (rows.kv_heads == heads // 4)
    ].reset_index(drop=True)  # fmt: skip
    shape = batches(rows)
    equal = (shape.spread < 1e-9).to_numpy()
    ours = fit_library(rows[equal], workers=1).predict(rows[~equal]).seconds
    known, asked = shape[equal], shape[~equal]
    seconds = rows["duration_s"].to_numpy()[equal]
    error = miss(ours, rows[~equal])
    group = asked.groupby(["chunk", "context", "decodes"]).ngroup().to_numpy()
    for name, plain in (("mean context", at_the_mean), ("Vidur's proxy", proxy)):
        other = miss(plain(known, seconds, asked), rows[~equal])
        low, high = interval(other - error, group)
        print(f"\n{device}, {heads} heads, {len(error)} rows, {name}: {other.mean():.2%}, "
              f"from all lengths: {error.mean():.2%}, less by {low:.2%} to {high:.2%}")  # fmt: skip
        assert low > 0
        assert error.mean() <= 0.85 * other.mean()


@pytest.mark.parametrize("timing", ["kernel", "with_launch"])
def test_prefills_of_unequal_lengths_are_predicted_from_equal_ones(
    timing: str, shared: Path, tmp_path: Path, frontier: Callable[..., Result]
) -> None:
    rows = imported(frontier, tmp_path, "frontier", shared / "kernels/h800-a800-frontier")
    rows = rows[
        (rows.operator == "attention_prefill") & (rows.device == "a800_sxm")
        & (rows.timing == timing)
    ].reset_index(drop=True)  # fmt: skip
    several = rows["query_lens"].notna().to_numpy()
    known, asked = rows[~several], rows[several]
    library = fit_library(known, workers=1)
    error = miss(library.predict(asked).seconds, asked)
    equal = asked.assign(
        query_tokens=[np.mean(q) for q in asked["query_lens"]],
        context_tokens=[np.mean(c) for c in asked["context_lens"]],
        query_lens=None, context_lens=None,
    )  # fmt: skip
    others = {
        "mean length": library.predict(equal).seconds,
        "Vidur's proxy": one_long(known, asked),
    }
    for name, predicted in others.items():
        other = miss(predicted, asked)
        low, high = interval(other - error, np.arange(len(asked)))
        print(f"\nA800 {timing}, {name}: {other.mean():.2%}, from all lengths: {error.mean():.2%}, "
              f"less by {low:.2%} to {high:.2%}, {len(error)} rows")  # fmt: skip
    assert error.mean() <= 0.85 * miss(others["Vidur's proxy"], asked).mean()


def one_long(known: pd.DataFrame, asked: pd.DataFrame) -> Floats:
    """Vidur's proxy of prefills: a forest over one as long as the root of the summed squares."""
    from sklearn.ensemble import RandomForestRegressor

    def features(rows: pd.DataFrame) -> Floats:
        query, context = requests_lengths(rows)
        found: Floats = np.c_[query, context, rows["heads"], rows["kv_heads"], rows["head_dim"]]
        return found

    forest = RandomForestRegressor(100, random_state=0)
    forest.fit(features(known), np.log(known["duration_s"]))
    return np.exp(forest.predict(features(asked)))


def requests_lengths(rows: pd.DataFrame) -> tuple[Floats, Floats]:
    """Root of the summed squares of the queries, and mean context, of each row."""
    r = requests_of(rows)
    return np.sqrt(r.sum(r.query**2)), r.sum(r.context) / r.sum(np.ones_like(r.query))


def test_recorded_loads_predict_experts_better_than_even_ones(
    shared: Path, tmp_path: Path, frontier: Callable[..., Result]
) -> None:
    rows = imported(frontier, tmp_path, "frontier", shared / "kernels/h800-a800-frontier")
    rows = rows[
        (rows.operator == "grouped_gemm") & (rows.device == "h800_sxm") & (rows.timing == "kernel")
    ].reset_index(drop=True)
    group = rows.groupby(SHAPE).ngroup().to_numpy()
    fold = np.random.default_rng(0).permutation(group.max() + 1)[group] % 4
    errors = {}
    for name, table in (("even", rows.drop(columns=RECORDED)), ("recorded", rows)):
        predicted = np.empty(len(rows))
        for i in range(4):  # whole shapes, with the repeats of a workload on one side
            library = fit_library(table[fold != i], workers=1)
            predicted[fold == i] = library.predict(table[fold == i]).seconds
        errors[name] = miss(predicted, rows)
    low, high = interval(errors["even"] - errors["recorded"], group)
    shares = {
        name: (e.mean(), (e <= 0.06).mean(), (e <= 0.10).mean()) for name, e in errors.items()
    }
    print(f"\nMAPE, within 6 and 10 %: {shares}, less by {low:.2%} to {high:.2%}, {len(rows)} rows")
    assert low > 0
