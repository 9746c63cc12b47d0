"""What operators cost on one device, as curves over their size, from measured kernels.

A curve of the very shape is interpolated in log-log between measured sizes; beyond the largest
it grows in proportion, below the smallest it stays, and both are counted as extrapolated. A
shape that was not measured is asked of a model fitted to those that were. Where there is none,
small operators are priced by the memory they move and collectives by the link they cross, and
both are named in ``estimated``; anything else is an error that says what could supply it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from simulator.hardware import Hardware
from simulator.step_time.kernel_types import KernelTypes
from simulator.step_time.layers import Call
from simulator.step_time.select_kernels import COLLECTIVES, even_loads, one_backend, where
from simulator.step_time.unmeasured import Unmeasured
from traces.errors import ConfigError

Floats = npt.NDArray[np.float64]

# The shortest kernels of the RTX tables (vLLM 0.19) take 1.7 to 2.7 us, whatever they move.
KERNEL_FLOOR_S = 2e-6
SIZE = {"linear": "m"}  # the column a curve runs over, else ``tokens``
SMALL = ("elementwise", "router", "sampling")


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds at measured sizes, both ``(n,)``, sizes ascending."""

    sizes: Floats
    seconds: Floats

    def at(self, sizes: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Seconds at each of ``sizes`` (above 0), and which lie outside what was measured."""
        inner = np.clip(sizes, self.sizes[0], self.sizes[-1])
        found = np.exp(np.interp(np.log(inner), np.log(self.sizes), np.log(self.seconds)))
        found = np.where(sizes > self.sizes[-1], found * sizes / self.sizes[-1], found)
        return found, (sizes < self.sizes[0]) | (sizes > self.sizes[-1])


@dataclass(slots=True)
class Prices:
    """Kernels of one device and engine version, of the types that a deployment runs in.

    ``estimated`` collects the layers that were not measured, with what they were priced by.
    """

    kernels: pa.Table
    hardware: Hardware
    types: KernelTypes
    unmeasured: Unmeasured
    estimated: dict[str, str] = field(default_factory=dict)

    def seconds(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Seconds of one such operator over ``rows`` tokens, and which were extrapolated.

        Raises ConfigError naming the family that is missing.
        """
        if call.family in COLLECTIVES:
            return self._collective(call, rows)
        curve = self.curve(call)
        if curve is not None:
            return curve.at(rows)
        if call.family in SMALL:
            self.estimated[call.layer] = "memory moved"
            moved = rows * 4.0 * call.shape["hidden"]  # 16 bits, read and written
            return _at_least(moved / (self.hardware.memory_bandwidth_gb_s * 1e9))
        shape = self._shape(call)
        size = SIZE.get(call.family, "tokens")
        found = self.unmeasured.predict(call.layer, call.family, shape, {size: rows})
        if found is None:
            raise ConfigError(self._missing(call))
        return found.seconds, found.extrapolated

    def curve(self, call: Call) -> Curve | None:
        """The measured curve of an operator of exactly this shape, None if there is none."""
        shape = {k: v for k, v in self._shape(call).items() if k in self.kernels.column_names}
        found = where(self.kernels, {"operator": call.family, **shape})
        if call.family == "grouped_gemm":
            found = even_loads(found)
        if "layer" in found.column_names:
            named = where(found, {"layer": call.layer})
            found = named if len(named) or call.family in SMALL else found
        return _curve(one_backend(found), SIZE.get(call.family, "tokens"))

    def _shape(self, call: Call) -> dict[str, int | str]:
        return {**call.shape, "dtype": self.types.of(call.family, call.layer)}

    def _collective(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        ranks = call.shape["ranks"]
        size = rows * float(call.shape["bytes"])
        found = where(self.kernels, {"operator": call.family, "ranks": ranks})
        curve = _curve(one_backend(found), "bytes")
        if curve is not None:
            return curve.at(size)
        link = self.hardware.intra_node
        self.estimated[call.layer] = f"link {link.kind}"
        # ring: 2 (n - 1) / n of the message crosses each link, in as many hops
        share = (2.0 if call.family == "all_reduce" else 1.0) * (ranks - 1) / ranks
        seconds = size * share / (link.bandwidth_gb_s * 1e9) + link.latency_us * 1e-6
        return seconds, np.zeros(len(rows), bool)

    def _missing(self, call: Call) -> str:
        shape = ", ".join(f"{k} {v}" for k, v in call.shape.items())
        return (
            f"operators: no {call.family} kernel for {call.layer} ({shape}) on "
            f"{self.hardware.name}; measure it, or import a table that has it "
            "(frontier import-kernels)"
        )


def _at_least(seconds: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    return np.maximum(seconds, KERNEL_FLOOR_S), np.zeros(len(seconds), bool)


def _curve(kernels: pa.Table, size: str) -> Curve | None:
    """Mean seconds by size; None with fewer than two sizes."""
    if not len(kernels) or size not in kernels.column_names:
        return None
    table = kernels.select([size, "duration_s"]).drop_null()
    mean = table.group_by(size).aggregate([("duration_s", "mean")]).sort_by(size)
    if len(mean) < 2:
        return None
    sizes = mean.column(size).cast(pa.float64()).to_numpy()
    seconds = mean.column("duration_s_mean").to_numpy()
    return Curve(sizes[sizes > 0], seconds[sizes > 0])
