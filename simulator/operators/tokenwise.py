"""Operators over the tokens of a step: norms, activations, KV writes; sampling; routers.

All stream: bytes are tokens x hidden read and written (2 bytes each way; Williams, Waterman and
Patterson, CACM 52(4), 2009, on streams). The router also multiplies by the gate, 2 tokens
hidden experts FLOPs. Each layer name is fitted by itself.

>>> rows = pd.DataFrame({"tokens": [8], "hidden": [4096]})
>>> Tokenwise().shape(rows, Device(132, 1e15)).work["bytes"].item()
131072.0
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.operators.base import Device, Shape, number, octaves, waves
from simulator.operators.lines import Axis


class Tokenwise:
    """The families ``elementwise`` and ``sampling``."""

    labels: tuple[str, ...] = ()
    keyed: tuple[str, ...] = ("layer",)
    axes: tuple[Axis, ...] = (
        Axis("tokens", "tokens", ("hidden",)),
        Axis("hidden", "hidden", ("tokens",)),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in bytes."""
        tokens, hidden = number(rows, "tokens"), number(rows, "hidden")
        work = {"launch": np.ones_like(tokens), "bytes": 4 * tokens * hidden, "rows": tokens}
        octave, tail = waves(tokens, device.sms)
        features = {
            "tokens": octaves(tokens),
            "hidden": octaves(hidden),
            "bytes": octaves(tokens * hidden),
            "waves": octave,
            "tail": tail,
        }
        return Shape(work, features, {"tokens": tokens, "hidden": hidden})


class Router(Tokenwise):
    """The ``router`` family: the gate's GEMM, or choosing and sorting experts."""

    axes: tuple[Axis, ...] = (
        Axis("tokens", "tokens", ("hidden", "experts", "top_k", "ranks")),
        Axis("experts", "experts", ("tokens", "hidden", "top_k", "ranks")),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in bytes and FLOPs, per token and per expert."""
        plain = super().shape(rows, device)
        tokens, hidden, experts = (number(rows, n) for n in ("tokens", "hidden", "experts"))
        top_k, ranks = number(rows, "top_k", 1), number(rows, "ep", 1) * number(rows, "tp", 1)
        work = {**plain.work, "flops": 2 * tokens * hidden * experts, "chosen": tokens * top_k}
        features = {
            **plain.features,
            "experts": octaves(experts),
            "top_k": octaves(top_k),
            "ranks": octaves(ranks),
        }
        place = {**plain.place, "experts": experts, "top_k": top_k, "ranks": ranks}
        return Shape(work, features, place)
