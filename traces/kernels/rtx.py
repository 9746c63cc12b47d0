"""vLLM 0.19 on an RTX PRO 6000 and an RTX 4090, as LLMServingSim 2.0 profiled them (MIT).

``<GPU>/<organisation>/<model>/<variant>/meta.yaml`` and beside it ``tp<N>/`` with one CSV a
kind of operator, in microseconds of kernel time. The profiler made one card do the work of a
tensor-parallel rank by shrinking the model, so there are no collectives here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml

from traces.errors import TraceError, nearest
from traces.kernels.base import Reading, Selection, homogeneous, joined, kernel_rows, mixed_lengths
from traces.kernels.csv_table import read_csv
from traces.kernels.rtx_models import MODELS, layers_of

US = 1e-6
GPUS = {"RTXPRO6000": "rtx_pro_6000", "RTX4090": "rtx_4090"}  # folder -> hardware sheet
DTYPES = {"bf16": "bfloat16"}
SKEW = "skew"  # the layer name of attention timed with contexts of two lengths
SAME_SCALE = 0.1
# Timed once at full width; the folders of the other tensor-parallel sizes repeat the rows.
NOT_SHARDED = ("layernorm", "final_layernorm", "qk_norm", "sampler")


class RTX:
    """``kv`` lengths are the context before the query; each decode queries one token."""

    name = "rtx-vllm0.19"
    licence = "MIT"

    def read(self, path: Path, wanted: Selection) -> Reading:
        reading = Reading(joined([]), [])
        tables = []
        metas = sorted(path.glob("*/*/*/*/meta.yaml"))
        if not metas:
            raise TraceError(f"{path}: no <GPU>/<organisation>/<model>/<variant>/meta.yaml in it")
        for file in metas:
            gpu = GPUS.get(file.relative_to(path).parts[0])
            if gpu is None:
                reading.left_out.append(str(file.parent.relative_to(path)))
                continue
            if wanted.gpu not in (None, gpu):
                continue
            run = _Run(file, gpu)
            tables += run.tables()
            reading.files += [file, *run.files]
            reading.remarks += run.remarks
        reading.table = joined(tables)
        return reading


class _Run:
    """One model profiled on one GPU: the tables of each tensor-parallel size."""

    def __init__(self, file: Path, gpu: str) -> None:
        meta = _meta(file)
        self.shape = MODELS[meta["model"]]
        self.degrees = [int(tp) for tp in meta["tp_degrees"]]
        self.iterations = int(meta["measurement_iterations"])
        self.directory = file.parent
        self.files: list[Path] = []
        self.remarks: list[str] = []
        self.common = {
            "timing": "kernel",
            "device": gpu,
            "engine": "vllm",
            "engine_version": meta["vllm_version"],
            "dtype": DTYPES[meta["variant"]],
        }

    def tables(self) -> list[pa.Table]:
        tables = []
        for tp in self.degrees:
            tables += self._by_layer(tp, "dense.csv", "tokens")
            tables += self._by_layer(tp, "per_sequence.csv", "sequences")
            attention = self._columns(tp, "attention.csv", ATTENTION)
            tables += self._attention(tp, attention)
            if (self.directory / f"tp{tp}" / "skew.csv").is_file():
                tables += self._skew(tp, attention)
            if (self.directory / f"tp{tp}" / "moe.csv").is_file():
                tables.append(self._moe(tp))
        return tables

    def _columns(
        self, tp: int, name: str, numbers: tuple[str, ...], texts: tuple[str, ...] = ()
    ) -> pd.DataFrame:
        file = self.directory / f"tp{tp}" / name
        self.files.append(file)
        return read_csv(file, numbers, texts)

    def _rows(self, columns: dict[str, Any], time_us: Any) -> pa.Table:
        times = np.asarray(time_us, float) * US
        return kernel_rows({**self.common, **columns, "duration_s": times}, len(times))

    def _by_layer(self, tp: int, name: str, count: str) -> list[pa.Table]:
        rows = self._columns(tp, name, (count, "time_us"), ("layer",))
        known = layers_of(self.shape, tp)
        tables = []
        for layer, own in rows.groupby("layer"):
            if layer not in known:
                raise TraceError(
                    f"{self.directory}/tp{tp}/{name}: layer {layer!r} is unknown"
                    f"{nearest(str(layer), known)}"
                )
            if layer in NOT_SHARDED and tp != self.degrees[0]:
                continue
            operator, width = known[str(layer)]
            size = "m" if operator == "linear" else "tokens"
            columns = {"operator": operator, "layer": layer, size: own[count], **width}
            tables.append(self._rows(columns, own["time_us"]))
        return tables

    def _attention(self, tp: int, rows: pd.DataFrame) -> list[pa.Table]:
        chunk, kv_prefill, n, kv_decode, time_us = (rows[c].to_numpy() for c in ATTENTION)
        return self._batches(tp, None, chunk, kv_prefill, n, kv_decode, time_us)

    def _batches(
        self, tp: int, layer: str | None, chunk: Any, kv_prefill: Any, n: Any, kv: Any, time_us: Any
    ) -> list[pa.Table]:
        """Batches of one prefill chunk (0 for none) and ``n`` decodes of equal context."""
        head = self._heads(tp, layer)
        prefill, decode = n == 0, chunk == 0
        both = ~(prefill | decode)
        groups = [
            ("attention_prefill", prefill, homogeneous(1 + 0 * chunk, chunk, kv_prefill)),
            ("attention_decode", decode, homogeneous(n, 1 + 0 * n, kv)),
        ]
        tables = [
            self._rows(
                {"operator": name, **head, **{k: v[mask] for k, v in shape.items()}},
                time_us[mask],
            )
            for name, mask, shape in groups
        ]
        ints = (x[both].astype(int).tolist() for x in (chunk, kv_prefill, n, kv))
        batches = [(c, p, k, [d] * k) for c, p, k, d in zip(*ints, strict=True)]
        tables.append(self._mixed(head, batches, time_us[both]))
        return tables

    def _mixed(
        self, head: dict[str, Any], batches: list[tuple[int, int, int, list[int]]], time_us: Any
    ) -> pa.Table:
        """Rows of (chunk, its context, decodes, their contexts), chunk 0 for decodes alone."""
        query = [([c] if c else []) + [1] * n for c, _, n, _ in batches]
        context = [([p] if c else []) + kv for c, p, _, kv in batches]
        operator = ["attention_mixed" if c else "attention_decode" for c, *_ in batches]
        shape = mixed_lengths(query, context)
        return self._rows({"operator": operator, **head, **shape}, time_us)

    def _skew(self, tp: int, attention: pd.DataFrame) -> list[pa.Table]:
        """Decodes of which ``nb`` have the context ``kv_big`` and the rest ``kvs``.

        Each was timed beside the same batch with every context at the mean, and at the
        maximum. The times are sums over the iterations; that they then lie on the scale of
        ``attention.csv`` is checked where both timed the same batch.
        """
        rows = self._columns(tp, "skew.csv", SKEW_COLUMNS)
        n, chunk, kv_prefill = (rows[c].to_numpy() for c in ("n", "pc", "kp"))
        times = {c: rows[c].to_numpy() / self.iterations for c in TIMES}
        self._same_scale(tp, rows.assign(time_us=times["t_max_us"]), attention)
        tables = []
        for column, kv in (("t_mean_us", "kv_mean"), ("t_max_us", "kv_big")):
            tables += self._batches(
                tp, SKEW, chunk, kv_prefill, n, rows[kv].to_numpy(), times[column]
            )
        ints = (rows[c].astype(int).tolist() for c in ("pc", "kp", "n", "nb", "kvs", "kv_big"))
        batches = [
            (c, p, k, [big] * nb + [small] * (k - nb))
            for c, p, k, nb, small, big in zip(*ints, strict=True)
        ]
        return [*tables, self._mixed(self._heads(tp, SKEW), batches, times["t_skew_us"])]

    def _same_scale(self, tp: int, skew: pd.DataFrame, attention: pd.DataFrame) -> None:
        same = skew.merge(
            attention, left_on=["pc", "kp", "n", "kv_big"], right_on=list(ATTENTION[:4])
        )
        if not len(same):
            return
        ratio = float((same["time_us_x"] / same["time_us_y"]).median())
        file = self.directory / f"tp{tp}" / "skew.csv"
        if abs(ratio - 1) > SAME_SCALE:
            raise TraceError(
                f"{file}: over {self.iterations} iterations the times are {ratio:.2f} times "
                "those of attention.csv for the same batches: another unit?"
            )
        self.remarks.append(
            f"{'/'.join(file.parts[-6:])}: sums over {self.iterations} iterations, divided; then "
            f"{ratio:.3f} times attention.csv (median of {len(same)} equal batches)"
        )

    def _moe(self, tp: int) -> pa.Table:
        rows = self._columns(tp, "moe.csv", ("tokens", "activated_experts", "time_us"))
        columns = {
            "operator": "grouped_gemm",
            "tokens": rows["tokens"],
            "experts": self.shape.experts,
            "local_experts": self.shape.experts,
            "active_experts": rows["activated_experts"],
            "routed_tokens": rows["tokens"] * self.shape.top_k,
            "top_k": self.shape.top_k,
            "hidden": self.shape.hidden,
            "inter": self.shape.inter,
            "tp": tp,
            "ep": 1,
        }
        return self._rows(columns, rows["time_us"])

    def _heads(self, tp: int, layer: str | None) -> dict[str, Any]:
        return {
            "layer": layer,
            "heads": self.shape.heads // tp,
            "kv_heads": max(1, self.shape.kv_heads // tp),
            "head_dim": self.shape.head_dim,
            "window": 0,
            "kv_dtype": self.common["dtype"],
        }


ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")
TIMES = ("t_mean_us", "t_max_us", "t_skew_us")
SKEW_COLUMNS = ("n", "nb", "pc", "kp", "kvs", "kv_big", "kv_mean", *TIMES)


def _meta(file: Path) -> dict[str, Any]:
    try:
        meta = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    needed = ("model", "variant", "vllm_version", "tp_degrees", "measurement_iterations")
    if not isinstance(meta, dict) or any(key not in meta for key in needed):
        raise TraceError(f"{file}: expected the keys {', '.join(needed)}")
    for key, known in (("model", MODELS), ("variant", DTYPES)):
        if meta[key] not in known:
            raise TraceError(f"{file}: {key} {meta[key]!r} is unknown{nearest(meta[key], known)}")
    return meta
