"""What operators cost on one device, as curves over their size, from measured kernels.

A curve is interpolated in log-log between measured sizes; beyond the largest it grows in
proportion, below the smallest it stays, and both are counted as extrapolated. Where nothing
was measured, small operators are priced by the memory they move and collectives by the link
they cross, and both are named in ``estimated``; anything else is an error that says what
could supply it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from simulator.hardware import Hardware
from simulator.step_time.expert_prices import ExpertPrices, expert_prices
from simulator.step_time.layers import COLLECTIVES, Call
from simulator.step_time.links import link_seconds, nodes_of
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
    """Kernels of one device, engine version and dtype.

    ``estimated`` collects the layers that were not measured, with what they were priced by.
    """

    kernels: pa.Table
    hardware: Hardware
    estimated: dict[str, str] = field(default_factory=dict)
    _experts: ExpertPrices | None = None

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
        raise ConfigError(self._missing(call))

    def curve(self, call: Call) -> Curve | None:
        """The measured curve of an operator of exactly this shape, None if there is none."""
        shape = {k: v for k, v in call.shape.items() if k in self.kernels.column_names}
        found = _where(self.kernels, {"operator": call.family, **shape})
        if "layer" in found.column_names:
            named = _where(found, {"layer": call.layer})
            found = named if len(named) or call.family in SMALL else found
        return _curve(found, SIZE.get(call.family, "tokens"))

    def experts(
        self, call: Call, pairs: Floats, active: Floats
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Seconds of a grouped GEMM on ranks with such loads, and which were extrapolated.

        Raises ConfigError naming the shape that is missing.
        """
        if self._experts is None:
            self._experts = expert_prices(self.kernels, call)
        if self._experts is None:
            raise ConfigError(self._missing(call))
        return self._experts.at(pairs, active)

    def _collective(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        size = rows * float(call.shape["bytes"])
        nodes = nodes_of(call, self.hardware)
        found = _where(self.kernels, {"operator": call.family, "ranks": call.shape["ranks"]})
        if "nodes" in found.column_names:
            found = found.filter(pc.equal(pc.fill_null(found.column("nodes"), 1), nodes))
        curve = _curve(found, "bytes")
        if curve is not None:
            return curve.at(size)
        links = [self.hardware.intra_node] if nodes < call.shape["ranks"] else []
        links += [self.hardware.inter_node] if nodes > 1 and self.hardware.inter_node else []
        self.estimated[call.layer] = f"link {' and '.join(link.kind for link in links)}"
        return link_seconds(call, size, self.hardware), np.zeros(len(rows), bool)

    def _missing(self, call: Call) -> str:
        shape = ", ".join(f"{k} {v}" for k, v in call.shape.items())
        return (
            f"operators: no {call.family} kernel for {call.layer} ({shape}) on "
            f"{self.hardware.name}; measure it, or import a table that has it "
            "(frontier import-kernels)"
        )


def _at_least(seconds: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    return np.maximum(seconds, KERNEL_FLOOR_S), np.zeros(len(seconds), bool)


def _where(kernels: pa.Table, values: dict[str, int | str]) -> pa.Table:
    """Rows that hold all of ``values``; none where a column is absent."""
    for name, value in values.items():
        if name not in kernels.column_names:
            return kernels.slice(0, 0)
        kernels = kernels.filter(pc.equal(kernels.column(name), value))
    return kernels


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


def select_kernels(
    kernels: pa.Table, hardware: Hardware, dtype: str, engine_version: str | None, source: str
) -> tuple[pa.Table, str]:
    """Rows for one device and dtype, of one engine version, and that version.

    The deployment's version if it was measured, else the latest. Kernel times only; of
    collectives also those with launch, where no others are. Raises ConfigError.
    """
    mine = _where(kernels, {"device": hardware.name})
    if not len(mine):
        known = ", ".join(sorted(set(kernels.column("device").to_pylist())))
        raise ConfigError(f"{source}: no kernel of {hardware.name} (it has: {known})")
    collective = pc.is_in(mine.column("operator"), pa.array(COLLECTIVES))
    timed = pc.equal(mine.column("timing"), "kernel")
    typed = pc.equal(mine.column("dtype"), dtype)
    mine = mine.filter(pc.or_(collective, pc.and_(timed, typed)))
    compute = mine.filter(pc.invert(pc.is_in(mine.column("operator"), pa.array(COLLECTIVES))))
    versions = sorted(set(compute.column("engine_version").to_pylist()), key=_version)
    if not versions:
        raise ConfigError(f"{source}: no {dtype} kernel times of {hardware.name}")
    wanted = (engine_version or "").split("+")[0]
    version = wanted if wanted in versions else versions[-1]
    others = pc.is_in(mine.column("operator"), pa.array(COLLECTIVES))
    return mine.filter(pc.or_(others, pc.equal(mine.column("engine_version"), version))), version


def _version(text: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in text.split(".")]
