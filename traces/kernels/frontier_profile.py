"""One file of Frontier's profiler: times of named operations, and whether launches are in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.kernels.csv_table import read_csv

MS = 1e-3
# An idle call takes 6.4 us with its launch on the H800 and 11 us on the A800: where a small
# operation is faster than this, launches were not timed.
LAUNCH_FLOOR_S = 6e-6
PRECISIONS = {"BF16": "bfloat16", "FP16": "float16"}
# Where it is not the embedding over the heads. Told from GEMM times: two projections of equal
# size take equal time on one device.
HEAD_DIMS = {
    "Phi-tiny-MoE-instruct": 128,
    "Qwen3-30B-A3B-tiny": 128,
    "qwen3-a3b-30b-moe": 128,
    "qwen3-next-80b-a3b-instruct-reduced-l2": 256,
    "qwen3-next-80b-a3b-instruct-reduced-l20": 256,
    "step-moe-noquant-small": 256,
}

Mask = npt.NDArray[np.bool_]
Columns = dict[str, Any]


class Profile:
    """The rows of one file, with ``time_stats.<operation>.<statistic>`` columns in ms.

    A ``*_kernel_only`` file says KERNEL_ONLY in each row. The others claim CUDA events around
    the launch, but hold rows of a kernel profiler too: where the operations named as witnesses
    are too fast for a launch, that overrules the claim, and ``overruled`` counts the rows.
    ``copies`` counts rows left out because they repeat another in every value.
    """

    def __init__(
        self,
        file: Path,
        operations: Sequence[str],
        numbers: Sequence[str],
        texts: Sequence[str] = (),
        optional_numbers: Sequence[str] = (),
        optional_texts: Sequence[str] = (),
    ) -> None:
        times = [f"time_stats.{name}.{stat}" for name in operations for stat in ("median", "std")]
        common = ("measurement_type", "profiling_precision", "quant_signature")
        self.rows = read_csv(
            file,
            numbers,
            texts,
            optional_numbers=[*times, *optional_numbers],
            optional_texts=[*common, *optional_texts],
        )
        self.file = file
        self.overruled = self.copies = 0
        precision = self.rows["profiling_precision"].map(PRECISIONS)
        self.dtype = precision.fillna("float16").to_numpy(object)  # Vidur's default
        quantised = self.rows["quant_signature"].str.startswith("method=fp8")
        self.weight_dtype = np.where(quantised, "fp8", self.dtype)

    def ints(self, name: str) -> npt.NDArray[np.int64]:
        """A column of whole numbers."""
        return self.rows[name].to_numpy(float).astype(np.int64)

    def head_dim(self) -> npt.NDArray[np.int64]:
        """Head dimension of each row."""
        heads = self.ints("n_head" if "n_head" in self.rows else "n_q_head")
        known = HEAD_DIMS.get(self.file.parent.name)
        return self.ints("n_embd") // heads if known is None else np.full(len(heads), known)

    def timed(self, operation: str) -> Mask:
        """Rows in which the operation took any time."""
        return self.rows[f"time_stats.{operation}.median"].to_numpy(float) > 0

    def times(self, operation: str, rows: npt.NDArray[Any] | list[int]) -> Columns:
        """Duration and spread of an operation in ``rows`` (a mask or indices), seconds."""
        stats = {"duration_s": "median", "std_s": "std"}
        return {
            name: self.rows[f"time_stats.{operation}.{stat}"].to_numpy(float)[rows] * MS
            for name, stat in stats.items()
        }

    def timing(self, witnesses: Sequence[str], group: Sequence[str]) -> npt.NDArray[Any]:
        """What each row times, told alike for all rows of equal ``group`` columns."""
        claimed = (self.rows["measurement_type"] == "KERNEL_ONLY").to_numpy(bool)
        columns = [f"time_stats.{name}.median" for name in witnesses]
        fastest_s = self.rows[columns].astype(float).min(axis=1) * MS
        keys = [self.rows[name].to_numpy() for name in group]
        fastest_s = fastest_s.groupby(keys, dropna=False).transform("min") if keys else fastest_s
        shown = (fastest_s < LAUNCH_FLOOR_S).to_numpy(bool)
        self.overruled = max(self.overruled, int((shown & ~claimed).sum()))
        return np.where(claimed | shown, "kernel", "with_launch")
