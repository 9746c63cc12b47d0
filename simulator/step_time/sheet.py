"""The profile of an engine that nobody has measured: what the device's data sheet promises.

It is what a calibration starts from and is measured against. A step reads the weights and
the KV cache at the memory's bandwidth, and multiplies at the peak rate, one after the other;
host, launches and communication take no time::

    step            dense weights / bandwidth
    active_experts  weights of an expert in all layers / bandwidth
    tokens          2 weights that a token meets / peak
    sampled         2 vocab hidden / peak
    context         KV of a token / bandwidth
    prefill_pairs   4 heads head_dim layers / peak (Q K^T and A V)
"""

from __future__ import annotations

from simulator.deployment import Engine
from simulator.hardware import Hardware, PeakDtype
from simulator.model import ModelSpec
from simulator.step_time.fitted import LAYOUT, RANGED, StepProfile
from simulator.weights import compute_bytes, parameters, weight_bytes

_PEAK: dict[int, PeakDtype] = {4: "fp32", 2: "bf16", 1: "fp8"}  # by bytes of an operand


def sheet_profile(
    model: ModelSpec, engine: Engine, hardware: Hardware, engine_version: str
) -> StepProfile:
    """The profile of one rank, fitted on nothing: every step it predicts is extrapolated."""
    size, ranks = compute_bytes(model, engine), engine.tensor_parallel_size
    byte_s = 1 / (hardware.memory_bandwidth_gb_s * 1e9)
    peaks = hardware.peak_tflops
    flop_s = 1 / (peaks.get(_PEAK[size], max(peaks.values())) * 1e12)
    embedding = model.vocab * model.hidden
    dense_bytes = weight_bytes(model, engine)
    if not model.tied_embeddings:
        dense_bytes -= embedding * size // ranks  # of the input only the tokens' rows are read
    forward = {
        "sampled": 2 * embedding / ranks * flop_s,
        "decode_context": model.kv_bytes_per_token(engine.kv_cache_dtype, ranks) * byte_s,
        "prefill_pairs": pair_flops(model) / ranks * flop_s,
    }
    forward["prefill_context"] = forward["decode_context"]
    if (moe := model.moe) is not None:
        expert = 3 * model.hidden * moe.inter * model.moe_layers
        expert_ranks = ranks * engine.data_parallel_size
        dense_bytes -= expert * moe.experts * size // expert_ranks
        forward["active_experts"] = expert * size / expert_ranks * byte_s
    forward |= {"step": dense_bytes * byte_s, "tokens": token_flops(model) / ranks * flop_s}
    nothing = {"step": 0.0}
    return StepProfile(
        model={n: getattr(model, n) for n in ("model_type", "layers", "hidden", "vocab")},
        engine="vllm",
        engine_version=engine_version,
        hardware=hardware.name,
        layout={name: getattr(engine, name) for name in LAYOUT},
        forward=forward,
        host=nothing,
        gap=nothing,
        frontend_s=0.0,
        ranges={name: [0, 0] for name in RANGED},
        fitted_on=[],
        intervals={"forward": {}, "host": {}, "gap": {}},
        fit={part: {"steps": 0.0} for part in ("forward", "host", "gap")},
        warnings=["not calibrated: from the data sheet, without host, launches and communication"],
    )


def token_flops(model: ModelSpec) -> float:
    """Operations on a token outside attention and the head: 2 for each weight that it meets."""
    met = parameters(model) - model.vocab * model.hidden * (1 if model.tied_embeddings else 2)
    if (moe := model.moe) is not None:
        expert = 3 * model.hidden * moe.inter * model.moe_layers
        met -= expert * (moe.experts - moe.top_k)
    return 2.0 * met


def pair_flops(model: ModelSpec) -> float:
    """Operations of attention on a pair of query and key, in all layers."""
    return 4.0 * model.heads * model.head_dim * model.layers
