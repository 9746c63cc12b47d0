"""How quantised weights are stored: one name for what every tool calls its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from traces.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Format:
    """``bits`` of a weight, with its share of scales and zero points."""

    bits: float
    experts_only: bool = False


FORMATS = {
    "fp8": Format(8),
    "fp8_block": Format(8),  # scales of blocks of 128 x 128 are a 4,000th
    "int8": Format(8),
    "int4": Format(4 + 20 / 128),  # a 16-bit scale and a 4-bit zero point per 128 weights
    "nvfp4": Format(4 + 8 / 16),  # an FP8 scale per 16
    "mxfp4": Format(4 + 8 / 32, experts_only=True),  # an 8-bit exponent per 32
}
ENGINE_NAMES = {  # vLLM's --quantization
    "fp8": "fp8", "awq": "int4", "awq_marlin": "int4", "gptq": "int4", "gptq_marlin": "int4",
    "mxfp4": "mxfp4", "modelopt": "fp8", "modelopt_fp4": "nvfp4",
}  # fmt: skip


def checkpoint_format(found: Mapping[str, Any] | None) -> str | None:
    """The format that a HF ``quantization_config`` means, None without one.

    The tool's own name if it is none of ``FORMATS``: only the size of the weights needs it.

    >>> checkpoint_format({"quant_method": "awq", "bits": 4})
    'int4'
    """
    if not found:
        return None
    method = str(found.get("quant_method", ""))
    if method in ("awq", "gptq"):
        return f"int{found.get('bits', 4)}"
    if method == "modelopt":
        return str(found.get("quant_algo", "")).lower()
    if method == "compressed-tensors":
        return _compressed_tensors(found)
    if found.get("weight_block_size"):
        return f"{method}_block"
    return method.removeprefix("fbgemm_")


def weight_format(checkpoint: str | None, engine: str | None) -> Format | None:
    """What is stored: the checkpoint's format, else what the engine makes of it on loading.

    Raises ConfigError if it is not known.
    """
    if checkpoint is not None:
        if checkpoint not in FORMATS:
            raise ConfigError(
                f"model: weights in an unknown format {checkpoint!r}{nearest(checkpoint, FORMATS)}"
            )
        return FORMATS[checkpoint]
    if engine is None:
        return None
    if engine not in ENGINE_NAMES:
        raise ConfigError(f"engine.quantization: unknown {engine!r}{nearest(engine, ENGINE_NAMES)}")
    return FORMATS[ENGINE_NAMES[engine]]


def _compressed_tensors(found: Mapping[str, Any]) -> str:
    groups = [*(found.get("config_groups") or {}).values()]
    weights = (groups[0].get("weights") if groups else None) or {}
    bits = weights.get("num_bits")
    if weights.get("type") == "float":
        return "nvfp4" if bits == 4 else f"fp{bits}"
    return f"int{bits}"
