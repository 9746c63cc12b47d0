"""Communication: all-reduce, all-gather, reduce-scatter, all-to-all, and between two ranks.

A rank sends or receives (n - 1) / n of its larger buffer over its link, an all-reduce twice
that (ring; Thakur, Rabenseifner and Gropp, IJHPCA 19(1), 2005); latency grows with the hops.
Times between measured sizes are interpolated; numbers of ranks or nodes that were not measured
are extrapolations, for they use other links and algorithms.

>>> rows = pd.DataFrame({"operator": ["all_reduce"], "bytes": [1000], "ranks": [4], "nodes": [1]})
>>> Collective().shape(rows, Device(132, 1e15)).work["bytes"].item()
1500.0
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.operators.base import Device, Shape, activation, label, number, octaves
from simulator.operators.lines import Axis

Floats = npt.NDArray[np.float64]


class Collective:
    """Families of one message; ``bytes`` is the larger of a rank's input and output buffer."""

    labels: tuple[str, ...] = ("ranks", "nodes")
    keyed: tuple[str, ...] = ("layer",)
    axes: tuple[Axis, ...] = (Axis("bytes", "bytes", ("ranks", "nodes"), straight=True),)

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in bytes over the link and hops."""
        return _shape(rows, number(rows, "bytes"), {})


class AllToAll(Collective):
    """The ``all_to_all`` family: a message, or tokens sent to the ranks of their experts.

    Dispatch and combine (layer) move tokens x hidden x min(top_k, ranks) values.
    """

    labels: tuple[str, ...] = ("ranks", "nodes", "sms")
    axes: tuple[Axis, ...] = (
        Axis("message", "message", ("ranks", "nodes", "sms", "hidden", "top_k", "experts"),
             straight=True),
        Axis("hidden", "hidden", ("ranks", "nodes", "sms", "tokens", "top_k", "experts")),
    )  # fmt: skip

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in bytes over the link, hops, and tokens."""
        tokens, hidden, top_k = (number(rows, n, 0) for n in ("tokens", "hidden", "top_k"))
        sent = (
            tokens * hidden * np.minimum(top_k, number(rows, "ranks")) * activation(rows, "dtype")
        )
        size = number(rows, "bytes")
        message = np.where(np.isnan(size), sent, size)
        more = {
            "tokens": tokens, "hidden": hidden, "top_k": top_k,
            "experts": number(rows, "experts", 0), "sms": number(rows, "sms", 0),
        }  # fmt: skip
        return _shape(rows, message, more)


def _shape(rows: pd.DataFrame, message: Floats, more: dict[str, Floats]) -> Shape:
    ranks, nodes = number(rows, "ranks"), number(rows, "nodes", 1)
    twice = np.where(label(rows, "operator") == "all_reduce", 2.0, 1.0)
    point = label(rows, "operator") == "send_recv"
    moved = np.where(point, message, twice * message * (ranks - 1) / ranks)
    work = {"launch": np.ones_like(message), "bytes": moved, "hops": ranks - 1}
    if "tokens" in more:
        work["tokens"] = more["tokens"]
    names = {"message": message, "ranks": ranks, "nodes": nodes, **more}
    features = {name: octaves(values) for name, values in names.items()}
    place = {"bytes": message, "message": message, "ranks": ranks, "nodes": nodes, **more}
    return Shape(work, features, place)
