"""Experts of a MoE layer on one rank: grouped GEMMs over the tokens that each expert got.

A pair is one token sent to one expert. With recorded counts the rank's pairs, active experts
and fullest expert are the row's own; otherwise they are expected values: tokens x top_k / ep
pairs, active experts by the label of the load, or E (1 - (1 - k/E)^t) of routers that draw at
random. FLOPs 6 pairs hidden inter
(three GEMMs, gated); bytes are the weights of the active experts and the activations
(Megablocks, arXiv:2211.15841). A tile holds rows of one expert: ceil(tokens / tile) tiles each.

>>> rows = pd.DataFrame({"tokens": [4], "experts": [8], "top_k": [2], "hidden": [16],
...     "inter": [32], "tp": [1], "ep": [2], "local_experts": [4], "dtype": ["fp8"]})
>>> work = GroupedGemm().shape(rows, Device(132, 1e15)).work
>>> work["flops"].item()  # 4 pairs here: 4 tokens x 2 experts on 2 ranks
12288.0
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.base import Device, Shape, label, number, octaves, waves, width
from simulator.operators.lines import Axis

Floats = npt.NDArray[np.float64]

TILES = (16, 64, 128)
QUANTILES = 64
SHAPE = ("hidden", "inter", "top_k", "experts", "load", "active_experts", "max_tokens")


def load_number(rows: pd.DataFrame) -> Floats:
    """How uneven a labelled load is: 0 for even, the exponent of a power law, NaN unknown.

    >>> load_number(pd.DataFrame({"load": ["balanced", "power_law_1.2"]})).tolist()
    [0.0, 1.2]
    """
    codes, names = pd.factorize(label(rows, "load"))
    return np.array([_load(str(name)) for name in names] or [0.0])[codes]


def _load(name: str) -> float:
    if name in ("balanced", "uniform"):
        return 0.0
    law, _, exponent = name.rpartition("_")
    try:
        return float(exponent) if law == "power_law" else np.nan
    except ValueError:
        return np.nan


class GroupedGemm:
    """The ``grouped_gemm`` family; ``inter`` is before tensor parallelism."""

    labels: tuple[str, ...] = ("load",)
    keyed: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = (
        Axis("tokens", "tokens", ("tp", "ep", *SHAPE[:5])),
        Axis("tp", "tp", ("tokens", "ep", *SHAPE)),
        Axis("ep", "ep", ("tokens", "tp", *SHAPE[:5])),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in FLOPs, bytes, tiles, and rows that are sorted and summed around the GEMMs."""
        names = ("tokens", "hidden", "inter", "top_k", "experts", "tp", "ep")
        tokens, hidden, inter, top_k, experts, tp, ep = (number(rows, n) for n in names)
        local, inner, load = experts / ep, inter / tp, load_number(rows)
        counts = labelled_counts(load, tokens, top_k, experts)
        counts[~np.isnan(number(rows, "active_experts"))] = np.nan  # recorded ones go first
        pairs, active, fullest = _counts(rows, tokens, top_k, experts, local, counts)
        each = np.maximum(pairs / active, 1e-3)
        tiles = {size: active * np.ceil(each / size) for size in TILES}
        for size in TILES:
            laid = np.minimum(counts, np.ceil(counts / size)).mean(axis=1) * local
            tiles[size] = np.where(np.isnan(laid), tiles[size], laid)
        moved = 3 * active * hidden * inner * width(rows, "dtype") + 4 * pairs * (hidden + inner)
        blocks = tiles[64] * np.ceil(2 * inner / 128)
        work = {
            "launch": np.ones_like(tokens),
            "flops": 6 * pairs * hidden * inner,
            "padded_flops": 6 * tiles[64] * 64 * hidden * inner,
            "bytes": moved,
            "tokens": tokens * hidden,
            "routed": tokens * top_k * hidden,
            "activated": pairs * inner,
            "blocks": blocks,
            "experts": local,
            "fullest": np.nan_to_num(np.ceil(fullest / 64) * hidden * inner),
        }
        features = {
            "bucket": np.ceil(octaves(tokens)),
            "tokens": octaves(tokens),
            "hidden": octaves(hidden),
            "inner": octaves(inner),
            "inter": octaves(inter),
            "top_k": octaves(top_k),
            "experts": octaves(experts),
            "local": octaves(local),
            "tp": octaves(tp),
            "ep": octaves(ep),
            "load": load,
            "flops": octaves(work["flops"]),
            "bytes": octaves(moved),
            "pairs": octaves(pairs),
            "active": octaves(active),
            "each": octaves(each),
            "fullest": octaves(fullest),
            "unevenness": fullest / each,
        }
        for size, count in tiles.items():
            filled = waves(count * np.ceil(2 * inner / 128), device.sms)
            features[f"waves_{size}"], features[f"tail_{size}"] = filled
        recorded = {n: number(rows, n, 0) for n in ("active_experts", "max_tokens")}
        place = {
            "tokens": tokens, "tp": tp, "ep": ep, "hidden": hidden, "inter": inter,
            "top_k": top_k, "experts": experts, "load": label(rows, "load"), **recorded,
        }  # fmt: skip
        return Shape(work, features, place)


def labelled_counts(load: Floats, tokens: Floats, top_k: Floats, experts: Floats) -> Floats:
    """Tokens of experts at the middles of ``QUANTILES`` equal parts, ``(n, QUANTILES)``.

    An even load gives all the same; ``power_law_a`` draws them from a density x^-a between 1
    and 0.8 times the tokens, or 0.01 and 2 where pairs are fewer than experts, and scales to
    the pairs (aiconfigurator's collector, helper.py). NaN where the load has no such label.

    >>> each = [np.array([x]) for x in (0.0, 32.0, 4.0, 64.0)]
    >>> labelled_counts(*each)[0, :2].tolist()
    [2.0, 2.0]
    """
    few = tokens * top_k <= experts
    low, high = np.where(few, 0.01, 1.0), np.where(few, 2.0, np.maximum(0.8 * tokens, 1.0))
    part = (np.arange(QUANTILES) + 0.5) / QUANTILES
    power = np.where(load > 1, 1 - load, 1.0)[:, None]
    low, high = low[:, None] ** power, high[:, None] ** power
    drawn = (low + (high - low) * part) ** (1 / power)
    drawn = np.where(load[:, None] > 1, drawn, np.where(load == 0, 1.0, np.nan)[:, None])
    found: Floats = drawn / drawn.mean(axis=1, keepdims=True) * (tokens * top_k / experts)[:, None]
    return found


def _counts(
    rows: pd.DataFrame,
    tokens: Floats,
    top_k: Floats,
    experts: Floats,
    local: Floats,
    labelled: Floats,
) -> tuple[Floats, Floats, Floats]:
    """Pairs and active experts on the rank, recorded or expected, and the fullest, if known."""
    pairs = number(rows, "routed_tokens")
    active, fullest = number(rows, "active_experts"), number(rows, "max_tokens")
    if "expert_tokens" in rows:
        for i, counts in enumerate(rows["expert_tokens"]):
            if counts is not None and np.ndim(counts):
                held = np.asarray(counts)
                pairs[i], active[i], fullest[i] = held.sum(), (held > 0).sum(), held.max(initial=0)
    even = local * np.minimum(labelled, 1).mean(axis=1)
    fullest = np.where(np.isnan(fullest), labelled.max(axis=1), fullest)
    expected = local * (1 - (1 - np.minimum(top_k / experts, 1)) ** tokens)
    pairs = np.where(np.isnan(pairs), tokens * top_k * local / experts, pairs)
    expected = np.where(np.isnan(even), expected, even)
    active = np.where(np.isnan(active), expected, active)
    return pairs, np.maximum(active, 1e-3), fullest
