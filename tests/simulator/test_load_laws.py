"""Fitted load laws against recorded counts that they have not seen: how uneven, what time."""

from __future__ import annotations

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
DRAWS = 200
# steps of one size; decodes are of as many requests, the tokens of a prompt resemble each other
CLASSES = {"decode": (1, 16), "prefill": (33, 512)}


def record(name: str) -> ExpertCounts:
    return expert_counts(read_bundle(SAMPLES / name / "rep1", eager=False), MOE.top_k)


def imbalance(counts: Counts) -> Floats:
    """Most tokens on an expert over the mean, by step and layer."""
    found: Floats = counts.max(axis=-1) / counts.mean(axis=-1)
    return found


def drawn_and_recorded(seen: str, held: str, low: int, high: int) -> tuple[Counts, Counts]:
    """Counts of the held run's steps in a class, and as many draws at each one's tokens."""
    fitted, other = fit_loads([record(seen)]), record(held).counts
    law = Table(fitted.shares, fitted.drift)
    tokens = other[:, 0].sum(axis=-1) // MOE.top_k
    where = np.flatnonzero((tokens >= low) & (tokens <= high))
    sizes = [int(n) for n in np.unique(tokens[where])]
    draws = dict(
        zip(sizes, law.counts(np.random.default_rng(0), MOE, DRAWS, sizes), strict=True)
    )  # fmt: skip
    picks = np.random.default_rng(1).integers(DRAWS, size=(len(where), 1 + 4000 // len(where)))
    drawn = [draws[int(tokens[i])][pick] for i, pick in zip(where, picks, strict=True)]
    return np.concatenate(drawn), other[where]


@pytest.mark.parametrize(("seen", "held"), PAIRS)
def test_imbalance_of_another_load_by_layer(seen: str, held: str) -> None:
    for name, bar, layer_bar in (("decode", 0.06, 0.15), ("prefill", 0.2, 0.35)):
        drawn, recorded = drawn_and_recorded(seen, held, *CLASSES[name])
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
    total = np.zeros(2)
    for name, bar in (("decode", 0.05), ("prefill", 0.05 if device == "cpu" else 0.15)):
        drawn, recorded = (
            seconds_of(device, c) for c in drawn_and_recorded(seen, held, *CLASSES[name])
        )
        error = drawn.mean() / recorded.mean() - 1
        total += drawn.mean() * len(recorded), recorded.mean() * len(recorded)
        print(f"\n{seen} to {held}, {device}, {name}: {error:+.1%}")
        assert abs(error) < bar
    assert abs(total[0] / total[1] - 1) < 0.05


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
