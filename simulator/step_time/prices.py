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
import pyarrow.compute as pc

from simulator.hardware import Hardware
from simulator.step_time.expert_loads import expected_active, waking_tokens
from simulator.step_time.expert_prices import ExpertPrices, expert_prices, passed_over
from simulator.step_time.kernel_types import SUBSTITUTES, KernelTypes
from simulator.step_time.layers import COLLECTIVES, Call
from simulator.step_time.links import link_seconds, nodes_of
from simulator.step_time.select_kernels import EVEN, one_backend, where
from simulator.step_time.unmeasured import Unmeasured
from traces.errors import ConfigError
from traces.kernels.work import least_work

Floats = npt.NDArray[np.float64]

# Bytes per element of a layer's ``hidden`` in 16 bits, else one read and one write. A norm adds
# the residual and keeps the sum; an activation reads gate and up; a sampler makes logits 32 bits
# wide, a softmax of them, and draws.
MOVED = {"layernorm": 8, "final_layernorm": 8, "act_fn": 6, "sampler": 18}
# The shortest kernels of the RTX tables (vLLM 0.19) take 1.7 to 2.7 us, whatever they move.
KERNEL_FLOOR_S = 2e-6
SIZE = {"linear": "m"}  # the column a curve runs over, else ``tokens``
SMALL = ("elementwise", "router", "sampling")
SUPPLY = (
    "measure it (frontier capture --profile-kernels), or import a table that has it "
    "(frontier import-kernels)"
)


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

    ``estimated`` collects the layers that were not measured, with what they were priced by;
    ``with_launch`` names operators that were timed only with their launch, which never mixes
    with kernel times.
    """

    kernels: pa.Table
    hardware: Hardware
    types: KernelTypes
    unmeasured: Unmeasured
    with_launch: frozenset[str] = frozenset()
    estimated: dict[str, str] = field(default_factory=dict)
    _experts: ExpertPrices | None = None
    _even: tuple[Curve, bool] | None = None

    def seconds(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Seconds of one such operator over ``rows`` tokens, and which were extrapolated.

        Raises ConfigError naming the family that is missing.
        """
        if call.family in COLLECTIVES:
            return self._collective(call, rows)
        if call.family == "grouped_gemm":
            pairs = rows * call.shape["top_k"] / call.shape["ep"]
            return self.experts(call, pairs, expected_active(call.shape, rows))
        dtype = self._dtype(call)
        curve = self.curve(call, dtype)
        if curve is None and call.family in SMALL:
            self.estimated[call.layer] = "memory moved"
            moved = rows * MOVED.get(call.layer, 4) * call.shape["hidden"]
            return _at_least(moved / streamed_gb_s(self.kernels, self.hardware) / 1e9)
        return self._at(call, dtype, curve, rows)

    def _at(
        self, call: Call, dtype: str, curve: Curve | None, rows: Floats
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """By the measured curve, else by the fitted model."""
        if curve is not None:
            return curve.at(rows)
        shape, size = self._shape(call, dtype), SIZE.get(call.family, "tokens")
        found = self.unmeasured.predict(call.layer, call.family, shape, {size: rows})
        if found is None:
            raise ConfigError(self._missing(call))
        return found.seconds, found.extrapolated

    def _labelled(self) -> bool:
        """Whether experts were measured under an even load, and said to be."""
        if "load" not in self.kernels.column_names:
            return False
        return bool(pc.any(pc.is_in(self.kernels.column("load"), pa.array(EVEN))).as_py())

    def _dtype(self, call: Call) -> str:
        """The type that the operator was measured in: its own, or one that stands in for it."""
        own = self.types.of(call.family, call.layer)
        near = SUBSTITUTES.get(own, own)
        for name in (own, near):
            if len(where(self.kernels, {"operator": call.family, "dtype": name})):
                if name != own:
                    self.estimated[call.layer] = f"{name} kernels, none of {own}"
                return name
        return own

    def curve(self, call: Call, dtype: str) -> Curve | None:
        """The measured curve of an operator of exactly this shape, None if there is none."""
        shape = self._shape(call, dtype)
        shape = {k: v for k, v in shape.items() if k in self.kernels.column_names}
        found = where(self.kernels, {"operator": call.family, **shape})
        if "layer" in found.column_names:
            named = where(found, {"layer": call.layer})
            found = named if len(named) or call.family in SMALL else found
        return _curve(one_backend(found), SIZE.get(call.family, "tokens"))

    def _shape(self, call: Call, dtype: str) -> dict[str, int | str]:
        shape: dict[str, int | str] = {**call.shape, "dtype": dtype}
        if call.family == "grouped_gemm" and self._labelled():
            shape["load"] = EVEN[0]
        return shape

    def experts(
        self, call: Call, pairs: Floats, active: Floats, gathered: float = 0.0
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Seconds of a grouped GEMM on ranks with such loads, and which were extrapolated.

        ``pairs`` and ``active`` (any shape) are a rank's tokens times experts, and its experts
        with any; ``gathered`` the tokens of all ranks, if each has them all. Raises ConfigError
        naming the shape that is missing.
        """
        if not self._labelled():
            if self._experts is None:
                kind = {"operator": call.family, "dtype": self._dtype(call)}
                self._experts = expert_prices(one_backend(where(self.kernels, kind)), call)
            if self._experts is not None:
                seconds, outside = self._experts.at(pairs, active)
                return seconds + self._passed_over(call, pairs, gathered, self._experts), outside
        if self._even is None:
            self._even = self._even_curve(call)
        curve, known = self._even
        tokens = pairs * call.shape["ep"] / call.shape["top_k"]
        even, woken = waking_tokens(call.shape, tokens, active)
        seconds, outside = curve.at(tokens)
        return seconds - (curve.at(even)[0] - curve.at(woken)[0]), outside | (not known)

    def _passed_over(
        self, call: Call, pairs: Floats, gathered: float, measured: ExpertPrices
    ) -> Floats:
        """Seconds for pairs of other ranks' experts; only kernels of 16 bits pass over them."""
        moved = passed_over(call, pairs, gathered, measured.ranks)
        if not moved.any() or self._dtype(call) not in ("bfloat16", "float16"):
            return np.zeros(pairs.shape)
        self.estimated[f"{call.layer} of other ranks"] = "memory moved"
        seconds: Floats = moved / streamed_gb_s(self.kernels, self.hardware) / 1e9
        return seconds

    def _even_curve(self, call: Call) -> tuple[Curve, bool]:
        """An even load's seconds over the tokens of all ranks, measured or fitted.

        And whether any of it rests on measurements; a fitted curve spans only what does.
        """
        dtype = self._dtype(call)
        if (curve := self.curve(call, dtype)) is not None:
            return curve, True
        measured = where(self.kernels, {"operator": call.family, "dtype": dtype})
        most = pc.max(measured.column("tokens")).as_py() if len(measured) else None
        sizes = 2.0 ** np.arange(0.0, np.log2(max(most or 0, 2)) + 0.5, 0.5)
        seconds, outside = self._at(call, dtype, None, sizes)
        if outside.all():
            return Curve(sizes, seconds), False
        return Curve(sizes[~outside], seconds[~outside]), True

    def _collective(self, call: Call, rows: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
        size = rows * float(call.shape["bytes"])
        nodes = nodes_of(call, self.hardware)
        found = where(self.kernels, {"operator": call.family, "ranks": call.shape["ranks"]})
        if "nodes" in found.column_names:
            found = found.filter(pc.equal(pc.fill_null(found.column("nodes"), 1), nodes))
        curve = _curve(one_backend(found), "bytes")
        if curve is not None:
            return curve.at(size)
        links = [self.hardware.intra_node] if nodes < call.shape["ranks"] else []
        links += [self.hardware.inter_node] if nodes > 1 and self.hardware.inter_node else []
        self.estimated[call.layer] = f"link {' and '.join(link.kind for link in links)}"
        return link_seconds(call, size, self.hardware), np.zeros(len(rows), bool)

    def _missing(self, call: Call) -> str:
        shape = ", ".join(f"{k} {v}" for k, v in call.shape.items())
        other = " (it has times with launch, which do not mix with kernel times)"
        return (
            f"operators: no {call.family} kernel for {call.layer} ({shape}) on "
            f"{self.hardware.name}{other * (call.family in self.with_launch)}; {SUPPLY}"
        )


def _at_least(seconds: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    return np.maximum(seconds, KERNEL_FLOOR_S), np.zeros(len(seconds), bool)


def streamed_gb_s(kernels: pa.Table, hardware: Hardware) -> float:
    """How fast memory streams: as in the fastest measured GEMM that the L2 cannot hold.

    The device's peak where none was measured.
    """
    peak, linear = hardware.memory_bandwidth_gb_s, where(kernels, {"operator": "linear"})
    work, seconds = least_work(linear)["memory_bytes"], linear.column("duration_s").to_numpy()
    large = work > 4 * hardware.l2_mb * 1e6
    reached = (work / seconds)[large] / 1e9
    return min(float(reached.max()), peak) if large.any() else peak


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
