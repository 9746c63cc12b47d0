"""Names of the number types that a deployment's operators run in, as tables of kernels have them.

A quantised checkpoint stores the dense layers, or the experts alone, in its own format;
attention, norms, routers and lm_head stay in 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.deployment import Engine
from simulator.model import ModelSpec
from simulator.quantization import ENGINE_NAMES, weight_format
from traces.errors import ConfigError

KERNEL_NAMES = {
    "fp8": "fp8", "fp8_block": "fp8_block", "int8": "int8", "int4": "int4_wo", "nvfp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
}  # fmt: skip

SUBSTITUTES = {"fp8_block": "fp8"}  # scales by block or by tensor, else the same GEMM


@dataclass(frozen=True, slots=True)
class KernelTypes:
    """Values of ``dtype`` by kind of operator, and of ``kv_dtype``."""

    plain: str
    dense: str
    experts: str
    cache: str

    def of(self, family: str, layer: str = "") -> str:
        """The ``dtype`` of an operator."""
        if family == "grouped_gemm":
            return self.experts
        if layer != "lm_head" and family in ("linear", "mla_prefill", "mla_decode"):
            return self.dense
        return self.plain


def kernel_types(model: ModelSpec, engine: Engine) -> KernelTypes:
    """Types of a deployment. Raises ConfigError for a format that no table of kernels names."""
    plain = (model.dtype if engine.dtype == "auto" else engine.dtype).removeprefix("torch.")
    cache = plain if engine.kv_cache_dtype == "auto" else engine.kv_cache_dtype
    cache = "fp8" if cache.startswith("fp8") else cache
    stored = weight_format(model.quantization, engine.quantization)
    if stored is None:
        return KernelTypes(plain, plain, plain, cache)
    name = model.quantization or ENGINE_NAMES[str(engine.quantization)]
    if name not in KERNEL_NAMES:
        raise ConfigError(f"model: no kernels are known for weights in {name}")
    quantised = KERNEL_NAMES[name]
    return KernelTypes(plain, plain if stored.experts_only else quantised, quantised, cache)
