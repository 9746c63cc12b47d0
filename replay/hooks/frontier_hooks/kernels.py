"""What the operators of a forward pass took: torch's profiler over passes of each size.

Each module of the model is a range in the trace, so that what runs in it, and on a GPU the
kernels that this launches, belongs to a layer. A pass replayed from a CUDA graph or compiled
has no ranges: profile with ``--enforce-eager``. Profiled passes are slow; the times of steps
and requests of such a capture mean nothing.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from math import log2
from pathlib import Path
from typing import Any

from frontier_hooks.spool import Stream

PROFILE_ENV = "FRONTIER_PROFILE_KERNELS"
RANGE = "frontier:"  # what names of ranges begin with; the index of the module follows
WARM_UP = 3  # passes at the start that are not profiled
REPEATS = 3  # passes of about one size that are
KEPT = ("cpu_op", "user_annotation", "kernel", "cuda_runtime")
# class in a module's ancestry -> what the module is; the first that fits
KINDS = {
    "FusedMoE": "experts", "MoERunner": "experts", "MLAAttention": "mla", "Attention": "attention",
    "ParallelLMHead": "head", "VocabParallelEmbedding": "embedding", "LinearBase": "linear",
    "RMSNorm": "norm", "RotaryEmbeddingBase": "rotary", "RotaryEmbedding": "rotary",
    "SiluAndMul": "activation", "GeluAndMul": "activation", "LogitsProcessor": "logits",
    "Sampler": "sampler",
}  # fmt: skip
# what a kind is described by: key in the row -> attributes, the first that it has
SIZES: dict[str, dict[str, tuple[str, ...]]] = {
    "linear": {"n": ("output_size_per_partition", "output_size"),
               "k": ("input_size_per_partition", "input_size")},
    "head": {"n": ("num_embeddings_per_partition",), "k": ("embedding_dim",)},
    "attention": {"heads": ("num_heads",), "kv_heads": ("num_kv_heads",),
                  "head_dim": ("head_size",), "window": ("sliding_window",)},
    "mla": {"heads": ("num_heads",)},
}  # fmt: skip


def wanted() -> bool:
    """Whether this capture profiles kernels."""
    return bool(os.environ.get(PROFILE_ENV))


class KernelProfiler:
    """Writes ``kernels.<replica>``: a row of modules first, then one a profiled pass."""

    def __init__(self, directory: Path, replica: int, model_runner: Any, device: Any) -> None:
        self._stream = Stream(directory, f"kernels.{replica}")
        self._on_device = str(device).split(":")[0] != "cpu"
        self._seen: Counter[tuple[int, int]] = Counter()
        self._passes = 0
        self._profiler: Any = None
        self._step = -1
        self._modules: list[dict[str, Any]] = []
        for name, module in model_runner.get_model().named_modules():
            self._watch(name, module)
        self._watch("sampler", model_runner.sampler)
        self._stream.write({"modules": self._modules})

    def begin(self, step: int, scheduled: Mapping[str, int]) -> None:
        """The pass of ``step`` is about to run; ``scheduled`` tokens of each request."""
        from torch.profiler import ProfilerActivity, profile

        self._passes += 1
        self._step = step
        tokens, requests = sum(scheduled.values()), len(scheduled)
        size = (round(4 * log2(max(tokens, 1))), requests.bit_length())
        if self._passes <= WARM_UP or self._seen[size] >= REPEATS:
            return
        self._seen[size] += 1
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._on_device
        self._profiler = profile(activities=kinds, record_shapes=True)
        self._profiler.start()

    def end(self) -> None:
        """The pass is over."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        if self._on_device:
            import torch

            torch.cuda.synchronize()
        profiler.stop()
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "trace.json"
            profiler.export_chrome_trace(str(file))
            events = json.loads(file.read_text())["traceEvents"]
        self._stream.write(
            {"step": self._step, "events": [_reduced(e) for e in events if _kept(e)]}
        )

    def _watch(self, name: str, module: Any) -> None:
        ancestry = [c.__name__ for c in type(module).__mro__]
        kind = next((KINDS[c] for c in ancestry if c in KINDS), None)
        if kind is None:
            return
        row: dict[str, Any] = {"name": name, "kind": kind, "class": ancestry[0]}
        for key, attributes in SIZES.get(kind, {}).items():
            found = (getattr(module, a) for a in attributes if hasattr(module, a))
            row[key] = next((int(v) if v is not None else 0 for v in found), 0)
        method = type(getattr(module, "quant_method", None)).__name__
        row["quantised"] = not (method == "NoneType" or method.startswith("Unquantized"))
        backend = getattr(module, "attn_backend", None)
        row["backend"] = backend.get_name() if backend is not None else ""
        module.forward = self._in_range(f"{RANGE}{len(self._modules)}", module.forward)
        self._modules.append(row)

    def _in_range(self, name: str, forward: Any) -> Any:
        from torch.profiler import record_function

        def call(*args: Any, **named: Any) -> Any:
            if self._profiler is None:
                return forward(*args, **named)
            with record_function(name):
                return forward(*args, **named)

        return call


def _kept(event: dict[str, Any]) -> bool:
    if event.get("ph") != "X" or event.get("cat") not in KEPT:
        return False
    return event["cat"] != "user_annotation" or str(event.get("name")).startswith(RANGE)


def _reduced(event: dict[str, Any]) -> dict[str, Any]:
    """The event as in the trace, with only what the parser reads."""
    kept = ("External id", "correlation", "Input Dims", "Input type")
    found = event.get("args", {})
    args = {key: found[key] for key in kept if key in found}
    return {key: event[key] for key in ("cat", "name", "ts", "dur", "tid")} | {"args": args}
