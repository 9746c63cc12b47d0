"""What the columns of each aiconfigurator table mean: one function a table.

Each takes the table's rows and returns one or two sets of ``KERNELS`` columns (two where a
row times a dispatch and a combine). Tables without a function are left out: attention of
families that are not modelled, and ``computescale``, which is a difference of two timings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from traces.kernels.base import homogeneous

Columns = dict[str, Any]
Mapper = Callable[[pd.DataFrame], list[Columns]]

MS, US = 1e-3, 1e-6
GRAPH_FLOOR_S = 15e-6  # replayed from a graph, every GEMM kernel's fastest row is below this
ELEMENT_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "int8": 1, "fp8": 1}
DTYPES = {"half": "float16", "float": "float32"}  # the rest carry the usual names already


def _dtype(values: pd.Series) -> pd.Series:
    return values.replace(DTYPES)


def _gemm(rows: pd.DataFrame) -> list[Columns]:
    return [
        {
            "operator": "linear",
            **{name: rows[name] for name in ("m", "n", "k")},
            "dtype": _dtype(rows["gemm_dtype"]),
            "timing": np.where(_host_bound(rows), "with_launch", "kernel"),
            "duration_s": rows["latency"] * MS,
        }
    ]


def _host_bound(rows: pd.DataFrame) -> pd.Series:
    """Rows of kernels that never beat ``GRAPH_FLOOR_S``, not even where there is no work.

    vLLM 0.24's block-scaled fp8 takes 55 to 430 us for any small GEMM, where the other engines
    take 3 to 5 us with the same kernels: it was not replayed from a graph.
    """
    small = (rows["m"] * rows["n"] * rows["k"] <= 1 << 28) & (rows["n"] * rows["k"] <= 1 << 23)
    fastest_s = (rows["latency"] * MS).where(small)
    kernels = [rows["gemm_dtype"], rows["kernel_source"]]
    return fastest_s.groupby(kernels).transform("min") > GRAPH_FLOOR_S


def _attention(operator: str) -> Mapper:
    """``isl`` is the query's length and ``step`` the context before it."""

    def columns(rows: pd.DataFrame) -> list[Columns]:
        shape = homogeneous(rows["batch_size"], rows["isl"], rows["step"])
        return [
            {
                "operator": operator,
                **shape,
                "heads": rows["num_heads"],
                "kv_heads": rows["num_key_value_heads"],
                "head_dim": rows["head_dim"],
                "window": rows.get("window_size", 0),
                "kv_dtype": _dtype(rows["kv_cache_dtype"]),
                "dtype": _dtype(rows["attn_dtype"]),
                "duration_s": rows["latency"] * MS,
            }
        ]

    return columns


def _mla(operator: str, layer: str) -> Mapper:
    """``layer`` mla is the attention kernel alone, mla_module with the projections around it."""

    def columns(rows: pd.DataFrame) -> list[Columns]:
        shape = homogeneous(rows["batch_size"], rows["isl"], rows["step"])
        weights = rows["gemm_type"] if "gemm_type" in rows else rows["mla_dtype"]
        return [
            {
                "operator": operator,
                "layer": layer,
                **shape,
                "heads": rows["num_heads"],
                "tp": rows["tp_size"],
                "kv_dtype": _dtype(rows["kv_cache_dtype"]),
                "attention_dtype": _dtype(rows["mla_dtype"]),
                "dtype": _dtype(weights),
                "duration_s": rows["latency"] * MS,
            }
        ]

    return columns


def _moe(rows: pd.DataFrame) -> list[Columns]:
    return [
        {
            "operator": "grouped_gemm",
            "tokens": rows["num_tokens"],
            "experts": rows["num_experts"],
            "local_experts": rows["num_experts"] // rows["moe_ep_size"],
            "top_k": rows["topk"],
            "hidden": rows["hidden_size"],
            "inter": rows["inter_size"],
            "tp": rows["moe_tp_size"],
            "ep": rows["moe_ep_size"],
            "load": rows["distribution"],
            "dtype": _dtype(rows["moe_dtype"]),
            "duration_s": rows["latency"] * MS,
        }
    ]


def _collective(rows: pd.DataFrame, operator: Any, dtype: pd.Series) -> Columns:
    return {
        "operator": operator,
        "bytes": rows["message_size"] * dtype.map(ELEMENT_BYTES),
        "ranks": rows["num_gpus"],
        "nodes": 1,
        "dtype": _dtype(dtype),
        "duration_s": rows["latency"] * MS,
    }


def _custom_all_reduce(rows: pd.DataFrame) -> list[Columns]:
    eager = rows["kernel_source"].str.endswith("_eager")
    timing = np.where(eager, "with_launch", "kernel")
    return [{**_collective(rows, "all_reduce", rows["allreduce_dtype"]), "timing": timing}]


def _nccl(rows: pd.DataFrame) -> list[Columns]:
    """nccl-tests, which launch each call from the host."""
    operator = rows["op_name"].replace({"alltoall": "all_to_all"})
    return [{**_collective(rows, operator, rows["nccl_dtype"]), "timing": "with_launch"}]


def _moe_all_to_all(rows: pd.DataFrame) -> list[Columns]:
    """Tokens are those of one rank; ``latency`` is in microseconds."""
    return [
        {
            "operator": "all_to_all",
            "layer": rows["phase"],
            "tokens": rows["num_tokens"],
            "experts": rows["num_experts"],
            "top_k": rows["topk"],
            "hidden": rows["hidden_size"],
            "ep": rows["ep_size"],
            "ranks": rows["ep_size"],
            "nodes": rows["node_num"],
            "sms": rows["sms"],
            "backend": rows["comm_backend"],
            "dtype": _dtype(rows["comm_dtype"]),
            "timing": "with_launch",
            "duration_s": rows["latency"] * US,
        }
    ]


GPUS_PER_NODE = 8  # of the machines DeepEP was timed on


def _deepep(rows: pd.DataFrame, layer: str, dtype: str) -> Columns:
    ranks = rows["node_num"] * GPUS_PER_NODE
    return {
        "operator": "all_to_all",
        "layer": layer,
        "tokens": rows["num_token"],
        "experts": rows["num_experts"],
        "top_k": rows["num_topk"],
        "hidden": rows["hidden_size"],
        "ep": ranks,
        "ranks": ranks,
        "nodes": rows["node_num"],
        "dtype": dtype,
    }


def _deepep_normal(rows: pd.DataFrame) -> list[Columns]:
    """One row is one pair of SM counts; a call's time is its notify and its transmit."""
    return [
        {
            **_deepep(rows, layer, "default"),
            "sms": rows[f"{layer}_sms"],
            "backend": "deepep_normal",
            "timing": "with_launch",
            "duration_s": (rows[f"{layer}_transmit_us"] + rows[f"{layer}_notify_us"]) * US,
        }
        for layer in ("dispatch", "combine")
    ]


def _deepep_low_latency(rows: pd.DataFrame) -> list[Columns]:
    """Dispatch sends fp8 with scales (its bandwidth column says so), combine bfloat16."""
    return [
        {
            **_deepep(rows, layer, dtype),
            "backend": "deepep_low_latency",
            "duration_s": rows[f"{layer}_avg_t_us"] * US,
        }
        for layer, dtype in (("dispatch", "fp8"), ("combine", "bfloat16"))
    ]


def _quantize(rows: pd.DataFrame) -> list[Columns]:
    return [
        {
            "operator": "elementwise",
            "layer": rows["op_name"],
            "tokens": rows["m"],
            "hidden": rows["k"],
            "dtype": _dtype(rows["quant_dtype"]),
            "duration_s": rows["latency"] * MS,
        }
    ]


MAPPERS: dict[str, Mapper] = {
    "context_attention": _attention("attention_prefill"),
    "context_mla": _mla("mla_prefill", "mla"),
    "custom_allreduce": _custom_all_reduce,
    "gemm": _gemm,
    "generation_attention": _attention("attention_decode"),
    "generation_mla": _mla("mla_decode", "mla"),
    "mla_context_module": _mla("mla_prefill", "mla_module"),
    "mla_generation_module": _mla("mla_decode", "mla_module"),
    "moe": _moe,
    "moe_a2a": _moe_all_to_all,
    "nccl": _nccl,
    "oneccl": _nccl,
    "scale_matrix": _quantize,
    "wideep_deepep_ll": _deepep_low_latency,
    "wideep_deepep_normal": _deepep_normal,
}
