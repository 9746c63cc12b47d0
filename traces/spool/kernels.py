"""The ``kernels`` table of a capture that profiled them: operators with their shapes.

A module of the model is an operator of a family, its sizes from what the module is and from
the inputs of what ran in it; a batch's queries and contexts are those of the step. Layers of
one pass that have the same shape are one row: the mean of their times, and the deviation.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import TraceError
from traces.kernels.base import homogeneous, joined, kernel_rows, mixed_lengths
from traces.kernels.torch_trace import Part, Range, read_trace
from traces.spool.device import device_name
from traces.spool.replica import Replica
from traces.spool.streams import Spool

STREAM = "kernels"
NORMS = {"norm": "final_layernorm", "q_norm": "qk_norm", "k_norm": "qk_norm"}
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
Key = tuple[tuple[str, Any], ...]


def kernels_table(
    spool: Spool, engines: list[dict[str, Any]], replicas: list[Replica]
) -> tuple[pa.Table, dict[str, Any]]:
    """Rows of all profiled passes of completed steps, and notes: passes, kernels left out.

    An empty table without profiled passes. Raises TraceError for a damaged row.
    """
    by_index = {replica.index: replica for replica in replicas}
    model = next(iter(spool.objects("model")), {})
    tables: list[pa.Table] = []
    notes: dict[str, Any] = {}
    outside = Counter[str]()
    for name in spool.names(STREAM):
        index = int(name.split(".")[1])
        engine = next(e for e in engines if e["replica"] == index)
        lines = spool.lines(name)
        modules = lines[0]["modules"] if lines else []
        for number, line in enumerate(lines[1:], 2):
            at = int(by_index[index].rows_of(np.array([line["step"]]))[0])
            if at < 0:  # the capture ended before the step did
                continue
            try:
                trace = read_trace(line["events"])
                outside += trace.outside
                batch = _batch(by_index[index], at)
                found = _Pass(modules, engine, model, batch, trace.on_device).rows(trace.ranges)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise TraceError(f"{spool.path / name}.jsonl: row {number}: not a profiled pass: "
                                 f"{error!r}") from None  # fmt: skip
            tables.append(found)
            notes["passes"] = notes.get("passes", 0) + 1
    if outside:
        notes["kernels outside of every module, seconds (CUDA graphs? --enforce-eager)"] = {
            name[:80]: round(seconds, 6) for name, seconds in outside.most_common(5)
        }
    return (joined(tables), notes) if tables else (pa.table({}), {})


def _batch(replica: Replica, step: int) -> tuple[list[int], list[int]]:
    """Queries and contexts of the requests of a step."""
    mine = replica.step == step
    return replica.tokens[mine].tolist(), replica.computed[mine].tolist()


class _Pass:
    """One profiled pass: what its ranges are."""

    def __init__(
        self, modules: list[dict[str, Any]], engine: dict[str, Any], model: dict[str, Any],
        batch: tuple[list[int], list[int]], on_device: bool,
    ) -> None:  # fmt: skip
        config = engine["config"]
        parallel = config["parallel_config"]
        self._modules, self._model, self._batch = modules, model, batch
        self._tokens = sum(batch[0])
        self._tp = int(parallel["tensor_parallel_size"])
        self._ranks = self._tp * int(parallel["data_parallel_size"])
        self._dtype = str(config["model_config"]["dtype"]).removeprefix("torch.")
        self._quantised = str(config["model_config"].get("quantization") or "")
        cache = str(config["cache_config"]["cache_dtype"])
        self._kv_dtype = self._dtype if cache == "auto" else cache
        self._whole = bool(parallel["enable_expert_parallel"])
        self._same = {
            "timing": "kernel",
            "device": device_name(engine["device"]),
            "engine": "vllm",
            "engine_version": str(engine["versions"].get("vllm", "")).split("+")[0],
        }

    def rows(self, ranges: list[Range]) -> pa.Table:
        """Rows of the pass, one a shape."""
        times: dict[Key, list[float]] = defaultdict(list)
        pending: dict[str, tuple[dict[str, Any], float]] = {}
        for found in ranges:
            for shape, seconds in self._operators(found):
                if shape.get("layer") == "qk_norm":  # two norms are one operator
                    first = pending.pop("qk_norm", None)
                    if first is None:
                        pending["qk_norm"] = (shape, seconds)
                        continue
                    shape = {**shape, "hidden": shape["hidden"] + first[0]["hidden"]}
                    seconds += first[1]
                if seconds > 0:
                    times[tuple(shape.items())].append(seconds)
        tables = [
            kernel_rows({**self._same, **{k: [v] for k, v in key}, **_moments(seen)}, 1)
            for key, seen in times.items()
        ]
        return joined(tables)

    def _operators(self, found: Range) -> Iterator[tuple[dict[str, Any], float]]:
        module = self._modules[found.module]
        for what, part in found.parts.items():
            if what in COLLECTIVES:
                size = {"bytes": part.bytes(), "ranks": self._ranks, "nodes": 1}
                yield {"operator": what, **size, **self._kernel(part.operator)}, part.seconds
            elif what == "kv_write":
                yield self._elementwise("kv_write", self._kv_width(module)), part.seconds
            elif (shape := self._shape(module, part)) is not None:
                yield shape, part.seconds

    def _shape(self, module: dict[str, Any], part: Part) -> dict[str, Any] | None:
        """Operator and sizes of a module's own part, None for what is no operator of ours."""
        kind, layer = module["kind"], module["name"].split(".")[-1]
        dtype = self._quantised if module["quantised"] and self._quantised else self._dtype
        rows = _rows(part)
        if kind == "linear" and layer in ("gate", "router"):
            sizes = {"tokens": rows, "hidden": module["k"], "experts": module["n"]}
            return {"operator": "router", "layer": "gate", **sizes, **self._kernel("")}
        if kind in ("linear", "logits"):
            head = next((m for m in self._modules if m["kind"] == "head"), module)
            of, name = (head, "lm_head") if kind == "logits" else (module, layer)
            sizes = {"m": rows, "n": of["n"], "k": of["k"]}
            return {"operator": "linear", "layer": name, **sizes, "backend": part.operator,
                    "dtype": dtype if kind == "linear" else self._dtype}  # fmt: skip
        if kind in ("attention", "mla"):
            return self._attention(module)
        if kind == "experts":
            return self._experts(module, dtype)
        if kind == "sampler":
            width = int(self._model.get("vocab_size", 0))
            sizes = {"tokens": rows, "hidden": width}
            return {"operator": "sampling", "layer": "sampler", **sizes, **self._kernel("")}
        if kind == "norm":
            return self._elementwise(NORMS.get(layer, "layernorm"), max(self._widths(part.inputs)))
        if kind == "embedding":
            return self._elementwise("embedding", int(self._model["hidden_size"]))
        if kind == "activation":  # of gate and up
            return self._elementwise("act_fn", max(self._widths(part.inputs)) // 2)
        if kind == "rotary":  # query and key
            return self._elementwise("rotary_emb", sum(self._widths(part.shapes)[:2]))
        return None

    def _widths(self, shapes: list[list[int]]) -> list[int]:
        """Numbers of one token in each input that has all tokens of the pass."""
        sizes = [int(np.prod(s)) for s in shapes if len(s) > 1 and s[0] == self._tokens]
        return [size // self._tokens for size in sizes]

    def _elementwise(self, layer: str, hidden: int) -> dict[str, Any]:
        sizes = {"tokens": self._tokens, "hidden": hidden}
        return {"operator": "elementwise", "layer": layer, **sizes, **self._kernel("")}

    def _kv_width(self, module: dict[str, Any]) -> int:
        if module["kind"] == "mla":
            return int(self._model["kv_lora_rank"]) + int(self._model["qk_rope_head_dim"])
        return int(2 * module["kv_heads"] * module["head_dim"])

    def _kernel(self, backend: str) -> dict[str, Any]:
        return {"backend": backend or None, "dtype": self._dtype}

    def _attention(self, module: dict[str, Any]) -> dict[str, Any] | None:
        queries, contexts = self._batch
        if len(set(queries)) == len(set(contexts)) == 1:
            sizes = homogeneous(len(queries), queries[0], contexts[0])
            lengths: dict[str, Any] = {n: int(np.ravel(v)[0]) for n, v in sizes.items()}
        else:
            mixed = mixed_lengths([queries], [contexts])
            lengths = {k: tuple(v[0]) if "lens" in k else v[0] for k, v in mixed.items()}
        several = {q > 1 for q in queries}
        phase = "mixed" if len(several) > 1 else "prefill" if several == {True} else "decode"
        if module["kind"] == "mla":
            if phase == "mixed" or "query_lens" in lengths:  # its families know equal lengths only
                return None
            sizes = {k: lengths[k] for k in ("batch", "query_tokens", "context_tokens")}
            return {"operator": f"mla_{phase}", **sizes, "heads": module["heads"],
                    "kv_dtype": self._kv_dtype, **self._kernel(module["backend"])}  # fmt: skip
        heads = {k: module[k] for k in ("heads", "kv_heads", "head_dim", "window")}
        return {"operator": f"attention_{phase}", **lengths, **heads,
                "kv_dtype": self._kv_dtype, **self._kernel(module["backend"])}  # fmt: skip

    def _experts(self, module: dict[str, Any], dtype: str) -> dict[str, Any]:
        hf = self._model
        total = next(int(hf[k]) for k in ("num_experts", "num_local_experts", "n_routed_experts")
                     if hf.get(k))  # fmt: skip
        inner = next(int(hf[k]) for k in ("moe_intermediate_size", "intermediate_size")
                     if hf.get(k))  # fmt: skip
        ep = self._ranks if self._whole else 1
        sizes = {
            "tokens": self._tokens, "experts": total, "local_experts": total // ep,
            "top_k": int(hf["num_experts_per_tok"]), "hidden": int(hf["hidden_size"]),
            "inter": inner, "tp": 1 if self._whole else self._ranks, "ep": ep,
        }  # fmt: skip
        return {"operator": "grouped_gemm", "layer": "experts", **sizes,
                **self._kernel(module["class"]), "dtype": dtype}  # fmt: skip


def _rows(part: Part) -> int:
    """Tokens of an operator: all but the last length of its first input with two or more."""
    shape = next((s for s in part.shapes if len(s) > 1), [0, 0])
    return int(np.prod(shape[:-1]))


def _moments(seconds: list[float]) -> dict[str, list[float]]:
    return {"duration_s": [float(np.mean(seconds))], "std_s": [float(np.std(seconds))]}
