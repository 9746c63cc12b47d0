"""Dense layers: a GEMM of ``m`` tokens, ``n`` outputs and ``k`` inputs.

FLOPs 2 m n k; bytes m k + n k of the operand types and 2 m n of output (as NVIDIA, "Matrix
Multiplication Background User's Guide", 2023). Quantized layers also read m k activations to
scale them. Kernels work on tiles: rows are padded, and the last wave of tiles leaves
multiprocessors idle (same guide, section 3, tile and wave quantization).

>>> rows = pd.DataFrame({"m": [1], "n": [4096], "k": [4096], "dtype": ["bfloat16"]})
>>> work = Linear().shape(rows, Device(132, 1e15)).work
>>> work["flops"].item(), work["bytes"].item()
(33554432.0, 33570816.0)
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.operators.base import Device, Shape, activation, number, octaves, waves, width
from simulator.operators.lines import Axis

TILES = ((128, 128), (128, 256), (64, 64), (256, 128))
ROW_TILE = 64
SPLITS = 16  # libraries split k when tiles are fewer than multiprocessors, not much further


class Linear:
    """The ``linear`` family; rows whose m is a multiple of 8 or 16 take other kernels."""

    labels: tuple[str, ...] = ()
    keyed: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = (
        Axis("m", "m", ("n", "k", "aligned")),
        Axis("n", "n", ("m", "k")),
        Axis("k", "k", ("m", "n")),
    )

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work in FLOPs, bytes, elements read to be scaled, and steps of the loop over k."""
        m, n, k = (number(rows, name) for name in ("m", "n", "k"))
        moved = m * k * activation(rows, "dtype") + n * k * width(rows, "dtype") + 2 * m * n
        padded = np.ceil(m / ROW_TILE) * ROW_TILE
        work = {
            "launch": np.ones_like(m),
            "flops": 2 * m * n * k,
            "padded_flops": 2 * padded * n * k,
            "bytes": moved,
            "scaled": m * k,
            "loop": k,
        }
        aligned = np.where(m % 16 == 0, 2.0, np.where(m % 8 == 0, 1.0, 0.0))
        tiles = np.ceil(m / 128) * np.ceil(n / 128)
        splits = np.clip(np.floor(device.sms / tiles), 1, SPLITS)
        features = {
            # Kernels are chosen by powers of two: a limit between two measured m lies there.
            "bucket": np.ceil(octaves(m)),
            "m": octaves(m),
            "n": octaves(n),
            "k": octaves(k),
            "flops": octaves(m * n * k),
            "bytes": octaves(moved),
            "outputs": octaves(m * n),
            "weights": octaves(n * k),
            "inputs": octaves(m * k),
            "aspect": octaves(m) - octaves(n),
            "odd": m % 2,
            "aligned": aligned,
            "splits": splits,
            "split_loop": octaves(k / splits),
        }
        for rows_of, columns_of in TILES:
            name = f"{rows_of}x{columns_of}"
            blocks = np.ceil(m / rows_of) * np.ceil(n / columns_of)
            features[f"waves_{name}"], features[f"tail_{name}"] = waves(blocks, device.sms)
        for tile in (16, 64, 128, 256):
            features[f"padding_{tile}"] = np.ceil(m / tile) * tile / m
        return Shape(work, features, {"m": m, "n": n, "k": k, "aligned": aligned})
