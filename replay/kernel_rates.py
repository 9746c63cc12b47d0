"""Holds measured operator rows against the peaks of the device they claim to come from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.hardware import Hardware, load_hardware
from traces.errors import ConfigError
from traces.kernels.work import DTYPES, least_work
from traces.schema import KERNELS

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Roof:
    """One peak: the largest share of it a row may show, and how its rate is printed.

    Clocks boost above the nominal by up to a tenth; memory and links do not.
    """

    limit: float
    scale: float
    unit: str


ROOFS = {
    "flops": Roof(1.10, 1e12, "TFLOP/s"),
    "memory_bytes": Roof(1.05, 1e9, "GB/s of memory"),
    "link_bytes": Roof(1.05, 1e9, "GB/s of link"),
}
TYPES = ("dtype", "kv_dtype", "attention_dtype")  # arithmetic may run in any of a row's types
SUMS = ("query_sum", "context_sum", "context_sq_sum", "context_max")
SIZES = tuple(c.name for c in KERNELS.columns if c.type == "int")


@dataclass(slots=True)
class Rates:
    """Share of each peak that each row reached at least; NaN where that is not told.

    ``unchecked`` names the devices without a hardware sheet.
    """

    shares: dict[str, Floats]
    peaks: dict[str, Floats]
    unchecked: list[str]

    def beyond(self) -> npt.NDArray[np.bool_]:
        """Rows that show more than their device can do."""
        found = np.zeros(len(self.shares["flops"]), bool)
        for name, roof in ROOFS.items():
            found |= self.shares[name] > roof.limit
        return found

    def only(self, rows: npt.NDArray[np.bool_]) -> Rates:
        """The rates of some rows."""
        shares, peaks = (
            {name: values[rows] for name, values in of.items()} for of in (self.shares, self.peaks)
        )
        return Rates(shares, peaks, self.unchecked)

    def best(self, rows: npt.NDArray[np.int64]) -> float:
        """The largest share of any peak among ``rows``; 0 where none is told."""
        told = np.concatenate([self.shares[name][rows] for name in ROOFS])
        return float(np.nan_to_num(told).max(initial=0.0))

    def text(self, table: pa.Table, row: int) -> str:
        """One line for a row beyond a peak: what it is, its rate, and the peak."""
        cells = table.slice(row, 1).to_pylist()[0]
        hidden = SUMS if cells.get("query_tokens") is not None else ()
        names = [n for n in SIZES if n not in hidden and cells.get(n) is not None]
        sizes = " ".join(f"{n}={cells[n]}" for n in names)
        name = max(ROOFS, key=lambda n: np.nan_to_num(self.shares[n][row]) / ROOFS[n].limit)
        roof, peak = ROOFS[name], self.peaks[name][row]
        rate = self.shares[name][row] * peak
        return (
            f"{cells['operator']} {sizes} {cells['dtype']} in {cells['duration_s'] * 1e6:.4g} us "
            f"on {cells['device']}: {rate / roof.scale:.1f} {roof.unit}, "
            f"above the device's peak of {peak / roof.scale:.1f}"
        )


def rates(table: pa.Table) -> Rates:
    """The least rates of all rows against their devices' peaks.

    Memory counts only what does not fit the L2 cache: repeated calls find the rest there.
    """
    size = len(table)
    peaks = {name: np.full(size, np.nan) for name in ROOFS}
    cached = np.zeros(size)
    unchecked: list[str] = []
    for device in sorted(table.column("device").unique().to_pylist()):
        try:
            hardware = load_hardware(device)
        except ConfigError:
            unchecked.append(device)
            continue
        rows = np.flatnonzero(pc.equal(table.column("device"), device).to_numpy())
        peaks["flops"][rows] = _arithmetic(table, hardware)[rows]
        peaks["memory_bytes"][rows] = hardware.memory_bandwidth_gb_s * 1e9
        peaks["link_bytes"][rows] = hardware.intra_node.bandwidth_gb_s * 1e9
        cached[rows] = hardware.l2_mb * 1e6
    work = least_work(table)
    work["memory_bytes"] = np.maximum(work["memory_bytes"] - cached, 0)
    duration_s = table.column("duration_s").to_numpy()
    shares = {name: work[name] / duration_s / peaks[name] for name in ROOFS}
    return Rates(shares, peaks, unchecked)


def _arithmetic(table: pa.Table, hardware: Hardware) -> Floats:
    """FLOP/s that bound each row: of the fastest of its types."""
    best = np.zeros(len(table))
    for column in TYPES:
        if column not in table.column_names:
            continue
        encoded = table.column(column).combine_chunks().dictionary_encode()
        of_type = [_peak(name, hardware) for name in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(len(of_type)).to_numpy(zero_copy_only=False)
        best = np.maximum(best, np.array([*of_type, 0.0])[codes])
    return best


def _peak(dtype: str, hardware: Hardware) -> float:
    """A type the device or the table does not know is bounded by the device's best."""
    tflops = hardware.peak_tflops
    key = DTYPES[dtype][2] if dtype in DTYPES else ""
    return 1e12 * next((v for k, v in tflops.items() if k == key), max(tflops.values()))
