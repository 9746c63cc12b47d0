"""Fitted load laws against recorded counts that they have not seen: how uneven, what time."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import ks_2samp

from simulator.hardware import load_hardware
from simulator.moe.fit import concentration, fit_loads
from simulator.moe.laws import Dirichlet, Layers, Table
from simulator.moe.recorded import ExpertCounts, expert_counts
from simulator.step_time.expert_prices import expert_prices
from simulator.step_time.layers import ENGINE, Call
from traces.bundle import read_bundle
from traces.kernels.work import least_work
from traces.samples import HOME as SAMPLES
from traces.schema import KERNELS

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
MOE = Layers(6, 16, 2)
SHAPE = {"experts": 16, "top_k": 2, "hidden": 512, "inter": 512, "tp": 1, "ep": 1}
RANKS = np.arange(16).reshape(2, 8)  # linear placement
PAIRS = [
    (f"{group}-{seen}", f"{group}-{held}")
    for group in ("moe", "moe-dp2ep2")
    for seen, held in (("low", "high"), ("high", "low"))
]
DRAWS = 400
KINDS = ("decode", "prefill")  # steps without and with tokens of a prompt, which are alike


def record(name: str) -> tuple[ExpertCounts, Counts, Counts]:
    """Counts of a run, and of each step the tokens of prompts and those of decodes."""
    bundle = read_bundle(SAMPLES / name / "rep1", eager=False)
    steps = bundle.table("steps").to_pandas().sort_values(["replica", "step"])
    split = steps["prefill_tokens"].to_numpy(), steps["decode_tokens"].to_numpy()
    ran = split[0] + split[1] > 0
    return expert_counts(bundle, MOE.top_k), split[0][ran], split[1][ran]


def imbalance(counts: Counts) -> Floats:
    """Most tokens on an expert over the mean, by step and layer."""
    found: Floats = counts.max(axis=-1) / counts.mean(axis=-1)
    return found


@cache
def drawn_and_recorded(seen: str, held: str, kind: str) -> tuple[Counts, Counts]:
    """Counts of the held run's steps of a kind, and draws at each one's tokens."""
    fitted, (other, prompts, decodes) = fit_loads([record(seen)[0]]), record(held)
    np.testing.assert_array_equal(prompts + decodes, other.tokens())
    law = Table(fitted.shares, fitted.prompts)
    where = np.flatnonzero(prompts > 0 if kind == "prefill" else prompts == 0)
    sizes = [np.unique(np.append(0, tokens[where])).tolist() for tokens in (prompts, decodes)]
    pairs = [(own, more) for own in sizes[0] for more in sizes[1]]
    mixed = law.mixed(np.random.default_rng(0), MOE, DRAWS, sizes[0], sizes[1])
    wanted = {(int(prompts[i]), int(decodes[i])) for i in where}
    draws = {pair: d for pair, (_, d) in zip(pairs, mixed, strict=True) if pair in wanted}
    picks = np.random.default_rng(1).integers(DRAWS, size=(len(where), 1 + 4000 // len(where)))
    found = [
        draws[int(prompts[i]), int(decodes[i])][pick] for i, pick in zip(where, picks, strict=True)
    ]
    return np.concatenate(found), other.counts[where]


@pytest.mark.parametrize(("seen", "held"), PAIRS)
def test_imbalance_of_another_load_by_layer(seen: str, held: str) -> None:
    for name, bar, layer_bar in (("decode", 0.06, 0.15), ("prefill", 0.12, 0.25)):
        drawn, recorded = drawn_and_recorded(seen, held, name)
        layers = [
            ks_2samp(imbalance(drawn)[:, i], imbalance(recorded)[:, i]).statistic
            for i in range(MOE.layers)
        ]
        whole = ks_2samp(imbalance(drawn).ravel(), imbalance(recorded).ravel()).statistic
        print(f"\n{seen} to {held}, {name}: KS {whole:.3f}, by layer up to {max(layers):.3f}")
        assert whole < bar
        assert max(layers) < layer_bar


def seconds_of(device: str, counts: Counts) -> Floats:
    """Seconds of the slower of two ranks by step and layer, by a price table of the device.

    Each kernel moves its bytes and computes its FLOPs at the sheet's peaks, one after the other.
    """
    sheet = load_hardware(device)
    rows = pd.DataFrame(
        [
            SHAPE | {"operator": "grouped_gemm", "dtype": "bfloat16", "tokens": t,
                     "routed_tokens": 2 * t, "active_experts": a, "local_experts": 16}
            for t in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
            for a in range(1, min(16, 2 * t) + 1)
        ]
    )  # fmt: skip
    names = [c.name for c in KERNELS.columns if c.name in rows]
    work = least_work(pa.Table.from_pandas(rows[names], preserve_index=False))
    rows["duration_s"] = (
        work["memory_bytes"] / sheet.memory_bandwidth_gb_s / 1e9
        + work["flops"] / max(sheet.peak_tflops.values()) / 1e12
    )  # fmt: skip
    prices = expert_prices(
        pa.Table.from_pandas(rows), Call("grouped_gemm", "experts", ENGINE, SHAPE)
    )
    assert prices is not None
    held = counts[..., RANKS]
    found, _ = prices.at(held.sum(axis=-1).astype(float), (held > 0).sum(axis=-1).astype(float))
    slowest: Floats = np.where(held.sum(axis=-1) > 0, found, 0.0).max(axis=-1)
    return slowest


@pytest.mark.parametrize("device", ["cpu", "h100_sxm"])
@pytest.mark.parametrize(("seen", "held"), PAIRS)
def test_expert_time_of_another_load(seen: str, held: str, device: str) -> None:
    """On a CPU experts wait for FLOPs, on a GPU at these sizes for the weights of those awake."""
    for name in KINDS:
        drawn, recorded = (seconds_of(device, c) for c in drawn_and_recorded(seen, held, name))
        error = drawn.mean() / recorded.mean() - 1
        print(f"\n{seen} to {held}, {device}, {name}: {error:+.1%}")
        assert abs(error) < 0.05


def test_a_law_of_one_layer_says_how_uneven_an_unseen_one_is(shared: Path) -> None:
    """Real routers (Qwen1.5-MoE): the Dirichlet fitted to one layer, held to the other."""
    table = pd.read_csv(shared / "routing/qwen1.5_moe_expert_counts.csv")
    layers = {
        int(layer): rows.sort_values("expert") for layer, rows in table.groupby("layer")
    }  # fmt: skip
    assert len(layers) == 2
    for seen, held in (list(layers), list(layers)[::-1]):
        counts = layers[seen]["count"].to_numpy()
        law = Dirichlet(concentration((counts / counts.sum())[None]))
        rows = layers[held]
        top_k, tokens = int(rows["top_k"].iloc[0]), int(rows["tokens"].iloc[0])
        (drawn,) = law.counts(
            np.random.default_rng(0), Layers(2000, len(counts), top_k), 1, [tokens]
        )
        low, high = np.percentile(imbalance(drawn), [2.5, 97.5])
        found = imbalance(rows["count"].to_numpy())
        print(f"\nlayer {held}, fitted on {seen}: {found:.2f} in {low:.2f} to {high:.2f}")
        assert low <= found <= high
