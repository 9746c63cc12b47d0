"""Operator models recover a known law from its grid, and say where they do not know."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from simulator.operators import Library, fit_library, kept_library, load_library, save_library
from simulator.operators.attention_prefill import AttentionPrefill
from simulator.operators.base import Device
from simulator.operators.boosting import Boosting, fit_trees
from simulator.operators.lines import neighbours
from simulator.operators.roofline import fit_roofline
from simulator.operators.trees import Trees
from traces.errors import ConfigError, TraceError

Floats = npt.NDArray[np.float64]
KEY = {"device": "h100_sxm", "node": None, "engine": "vllm", "engine_version": "0.24.0",
       "backend": "cublas", "dtype": "bfloat16", "timing": "kernel"}  # fmt: skip
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def gemm_seconds(m: Floats, n: Floats, k: Floats) -> Floats:
    """4 us, 600 TFLOP/s in tiles of 128 x 128 on 132 multiprocessors, or 2.4 TB/s."""
    waves = np.ceil(np.ceil(m / 128) * np.ceil(n / 128) / 132)
    compute = waves * 132 * 128 * 128 * 2 * k / 600e12
    memory = 2 * (m * k + n * k + m * n) / 2.4e12
    found: Floats = 4e-6 + np.maximum(compute, memory)
    return found


def gemms(noise: float = 0.01, **key: str) -> pd.DataFrame:
    """A grid of 13 x 6 x 6 GEMMs."""
    grid = np.array(list(product(SIZES, SIZES[6:12], SIZES[6:12])), float)
    m, n, k = grid.T
    jitter = np.exp(np.random.default_rng(1).normal(0, noise, len(grid)))
    rows = pd.DataFrame({"operator": "linear", "m": m, "n": n, "k": k, **(KEY | key)})
    return rows.assign(duration_s=gemm_seconds(m, n, k) * jitter)


def errors(library: Library, rows: pd.DataFrame) -> Floats:
    return np.abs(library.predict(rows).seconds / rows["duration_s"].to_numpy() - 1)


def few() -> pd.DataFrame:
    """GEMMs too few for trees: what does not hang on them is tested on these, in no time."""
    rows = gemms()
    return rows[(rows.n >= 512) & (rows.k >= 1024)].reset_index(drop=True)


def hidden(rows: pd.DataFrame) -> pd.Series:
    """Lines of m, one of n, a whole shape, and the largest m."""
    shape = (rows.n == 512) & (rows.k == 256)
    found: pd.Series = rows.m.isin([16, 512, 4096]) | (rows.n == 256) | shape
    return found


@pytest.fixture(scope="module")
def fitted() -> Library:
    """Fitted without ``hidden``."""
    rows = gemms()
    return fit_library(rows[~hidden(rows)])


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(lambda r: r.m.isin([16, 512]) & (r.n != 256), id="lines of m"),
        pytest.param(lambda r: (r.n == 256) & ~r.m.isin([16, 512]), id="lines of n"),
        pytest.param(lambda r: (r.n == 512) & (r.k == 256), id="a whole shape"),
    ],
)
def test_what_was_never_measured_is_predicted(
    held: Callable[[pd.DataFrame], pd.Series], fitted: Library
) -> None:
    asked = gemms()[lambda r: held(r) & (r.m < 4096)]
    assert np.quantile(errors(fitted, asked), 0.9) < 0.10
    assert not fitted.predict(asked).extrapolated.any()


def test_the_largest_sizes_are_predicted_and_called_extrapolated(fitted: Library) -> None:
    large = gemms()[lambda r: r.m == 4096]
    assert np.median(errors(fitted, large)) < 0.10
    assert fitted.predict(large).extrapolated.all()


def test_a_line_s_own_kernel_is_learned_from_its_points() -> None:
    """Each (n, k) runs a kernel up to 30 % faster or slower, which no feature tells."""
    rows = few()
    own = np.random.default_rng(2).uniform(0.7, 1.3, (4096, 4096))
    rows["duration_s"] *= own[rows.n.astype(int) - 1, rows.k.astype(int) - 1]
    held = rows.m.isin([16, 512])
    library = fit_library(rows[~held])
    corrected = errors(library, rows[held])
    library.operators[0].corrections = []
    assert corrected.mean() < errors(library, rows[held]).mean()


def test_messages_between_measured_sizes_lie_on_a_straight_line() -> None:
    """Rates that no common law explains: other ones by size and by number of ranks."""
    size, ranks = (a.ravel() for a in np.meshgrid(2.0 ** np.arange(9, 30), [2, 4, 8]))
    rate = np.choose(np.searchsorted([2, 4, 8], ranks), [200e9, 60e9, 140e9])
    seconds = 10e-6 + np.minimum(size, 2**22) / rate + np.maximum(size - 2**22, 0) / (4 * rate)
    rows = pd.DataFrame({"operator": "all_gather", "bytes": size, "ranks": ranks, "nodes": 1,
                         **KEY, "duration_s": seconds})  # fmt: skip
    held = rows.bytes.isin([4096, 2**17, 2**20, 2**27])
    library = fit_library(rows[~held])
    assert library.operators[0].corrections[0].choice["both"] == "straight"
    assert errors(library, rows[held]).max() < 1e-6


def test_a_measured_point_is_returned_and_repeats_are_averaged() -> None:
    rows = few()
    again = rows.assign(duration_s=rows["duration_s"] * 1.21)
    library = fit_library(pd.concat([rows, again], ignore_index=True))
    found = library.predict(rows)
    np.testing.assert_allclose(found.seconds, rows["duration_s"] * 1.1, rtol=1e-9)


def test_keys_never_mix() -> None:
    fast = few()
    slow = fast.assign(timing="with_launch", duration_s=fast["duration_s"] + 40e-6)
    library = fit_library(pd.concat([fast[fast.m != 64], slow], ignore_index=True))
    assert len(library.operators) == 2
    assert errors(library, fast[fast.m == 64]).max() < 0.3


def test_a_key_that_was_not_fitted_gets_no_number() -> None:
    found = fit_library(few()).predict(few().assign(dtype="fp8"))
    assert np.isnan(found.seconds).all()
    assert found.extrapolated.all()


def test_too_few_rows_of_a_key_are_left_out_and_named() -> None:
    rows = pd.concat([few(), few().assign(backend="other")[:3]], ignore_index=True)
    assert fit_library(rows).left_out == [
        "linear h100_sxm vllm 0.24.0 other bfloat16 kernel: 3 rows"
    ]


def test_a_time_never_beats_the_device() -> None:
    rows = few().assign(duration_s=1e-6)
    huge = few()[:1].assign(m=2.0**20, n=2.0**16, k=2.0**16)
    found = fit_library(rows).predict(huge)
    assert found.extrapolated.all()
    assert 2 * 2.0**52 / found.seconds.item() <= 1.1 * 989.4e12 * (1 + 1e-9)


def test_unknown_operator_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown operator 'liner'; did you mean 'linear'"):
        fit_library(few().assign(operator="liner"))


class TestOnDisk:
    def test_predicts_the_same_and_writes_the_same_bytes(
        self, tmp_path: Path, fitted: Library
    ) -> None:
        for name in ("a", "b"):
            save_library(fitted, tmp_path / name)
        read, rows = load_library(tmp_path / "a"), gemms()
        np.testing.assert_array_equal(read.predict(rows).seconds, fitted.predict(rows).seconds)
        for file in ("operators.yaml", "operators.npz"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        with np.load(tmp_path / "a" / "operators.npz", allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)

    def test_refuses_what_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="no fitted operators there"):
            load_library(tmp_path)

    def test_models_of_other_features_are_refused(self, tmp_path: Path) -> None:
        library = fit_library(few())
        library.operators[0].features = ("m", "n")
        save_library(library, tmp_path)
        with pytest.raises(TraceError, match="linear: fitted by another version"):
            load_library(tmp_path).predict(few())

    def test_models_of_other_kernels_or_schemas_are_not_kept(self, tmp_path: Path) -> None:
        library = fit_library(few())
        library.fitted_on = {"kernels": "a"}
        assert kept_library(tmp_path, "a") is None
        save_library(library, tmp_path)
        assert kept_library(tmp_path, "a") is not None
        assert kept_library(tmp_path, "b") is None
        text = (tmp_path / "operators.yaml").read_text()
        (tmp_path / "operators.yaml").write_text(text.replace("schema: 4", "schema: 3", 1))
        assert kept_library(tmp_path, "a") is None

    def test_refuses_arrays_of_others(self, tmp_path: Path) -> None:
        save_library(fit_library(few()), tmp_path)
        np.savez(tmp_path / "operators.npz", other=np.zeros(1))
        with pytest.raises(TraceError, match="does not fit"):
            load_library(tmp_path)


def test_trees_equal_those_of_scikit_learn() -> None:
    from sklearn.ensemble import HistGradientBoostingRegressor

    random = np.random.default_rng(0)
    features = random.normal(size=(700, 4))
    features[random.random(features.shape) < 0.2] = np.nan
    target = np.nan_to_num(features[:, 0]) * 2 + np.isnan(features[:, 1])
    how = Boosting(trees=40, rate=0.1, leaves=15)
    model = HistGradientBoostingRegressor(
        max_iter=40, learning_rate=0.1, max_leaf_nodes=15, min_samples_leaf=3,
        l2_regularization=how.penalty, early_stopping=False, random_state=0,
        loss="absolute_error",
    ).fit(features, target)  # fmt: skip
    trees = fit_trees(features, target, how)
    asked = random.normal(size=(300, 4))
    asked[::7, 1] = np.nan
    np.testing.assert_array_equal(trees.predict(asked), model.predict(asked))
    kept = Trees.of(trees.arrays())
    np.testing.assert_array_equal(kept.predict(asked), trees.predict(asked))


def test_kernels_for_blackwell_take_queries_two_tiles_at_a_time() -> None:
    row = {"batch": 1, "query_tokens": 257, "context_tokens": 0, "heads": 4, "kv_heads": 1,
           "head_dim": 128, "window": 0, "kv_dtype": "bfloat16"}  # fmt: skip
    backends = ["vllm_flash_attn_fa3", "vllm_flashinfer_trtllmprefill"]
    plain, paired = (
        AttentionPrefill().shape(pd.DataFrame([row | {"backend": b}]), Device(148, 1e15))
        for b in backends
    )
    assert "pair_flops" not in plain.work
    assert set(paired.features) - set(plain.features) == {"pair_flops", "waves_256", "tail_256"}
    walked = 2 + 4  # key blocks of 128: two tiles, each up to its last query
    assert paired.work["pair_flops"].item() == 4 * 4 * 128 * 256 * 128 * walked


def test_trees_leave_out_a_column_that_is_never_known() -> None:
    random = np.random.default_rng(0)
    known, target = random.integers(0, 5, (200, 2)).astype(float), random.normal(size=200)
    how = Boosting(trees=10, rate=0.1, leaves=7)
    with_it = fit_trees(np.c_[known[:, :1], np.full(200, np.nan), known[:, 1:]], target, how)
    assert set(with_it.feature) == {-1, 0, 2}
    said = with_it.predict(np.c_[known[:, :1], np.ones(200), known[:, 1:]])
    np.testing.assert_array_equal(said, fit_trees(known, target, how).predict(known))


def test_a_roofline_recovers_its_ceilings() -> None:
    random = np.random.default_rng(0)
    flops, moved = 10 ** random.uniform(6, 14, (2, 2000))
    moved /= 100
    seconds = 3e-6 + ((flops / 7e14) ** 4 + (moved / 2e12) ** 4) ** 0.25
    fitted = fit_roofline(np.stack([flops, moved], axis=1), seconds)
    np.testing.assert_allclose(1 / fitted.cost_s, [7e14, 2e12], rtol=0.02)
    assert fitted.floor_s == pytest.approx(3e-6, rel=0.02)


def test_neighbours_are_the_nearest_known_points_of_the_line() -> None:
    random = np.random.default_rng(0)
    position, line = random.permutation(60) / 7, random.integers(0, 4, 60)
    known = random.random(60) < 0.5
    found = neighbours(position, line, known)
    for i in range(60):
        below = [
            j for j in range(60) if known[j] and line[j] == line[i] and position[j] < position[i]
        ]
        above = [
            j for j in range(60) if known[j] and line[j] == line[i] and position[j] > position[i]
        ]
        assert found.below[i] == max(below, key=lambda j: position[j], default=-1)
        assert found.above[i] == min(above, key=lambda j: position[j], default=-1)
