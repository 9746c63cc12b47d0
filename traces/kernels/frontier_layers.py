"""Frontier's profiles of linear layers, norms and mixture-of-experts layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from traces.kernels.frontier_profile import Columns, Mask, Profile

SMALL = ("attn_rope", "add", "input_layernorm", "post_attention_layernorm")
LINEAR = (
    "attn_pre_proj", "attn_pre_proj_qkv", "attn_pre_proj_wq", "attn_wq_proj", "attn_post_proj",
    "mlp_up_proj", "mlp_down_proj", "share_expert_up_proj", "share_expert_down_proj",
    "lm_head_linear",
)  # fmt: skip
ELEMENTWISE = (
    *SMALL, "emb", "mlp_act", "share_expert_act", "attn_inter_norm", "attn_pre_proj_q_norm",
)  # fmt: skip
ROUTER = ("moe_gating_linear", "moe_gating_routing_topk", "moe_shuffling")
RANKS = "num_tensor_parallel_workers"
BACKEND = "moe_grouped_gemm_backend"


def linear(file: Path) -> tuple[Profile, list[Columns]]:
    """GEMMs with their sizes on one rank, and element-wise layers with the width of a row.

    Raises TraceError.
    """
    profile = Profile(
        file,
        (*LINEAR, *ELEMENTWISE),
        ("num_tokens", "n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size", RANKS),
        optional_numbers=("share_expert_dim", "share_q_dim"),
        optional_texts=("use_qk_norm", "attn_output_gate"),
    )
    timing = profile.timing(SMALL, (RANKS,))
    tokens = profile.ints("num_tokens")
    gemms, widths = _sizes(profile)
    layers = [
        *(("linear", name, {"m": tokens, "n": n, "k": k}) for name, (n, k) in gemms.items()),
        *(
            ("elementwise", name, {"tokens": tokens, "hidden": width})
            for name, width in widths.items()
        ),
    ]
    tables = []
    for operator, layer, sizes in layers:
        rows = profile.timed(layer) & (np.min(list(sizes.values()), axis=0) > 0)
        dtype = profile.weight_dtype if operator == "linear" else profile.dtype
        values = {**sizes, "dtype": dtype, "timing": timing}
        tables.append(
            {
                "operator": operator,
                "layer": layer,
                **{name: column[rows] for name, column in values.items()},
                **profile.times(layer, rows),
            }
        )
    return profile, tables


def _sizes(profile: Profile) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """(n, k) of each GEMM and the width of each element-wise layer; n is 0 where unknown."""
    ranks, hidden, head_dim = profile.ints(RANKS), profile.ints("n_embd"), profile.head_dim()
    heads = profile.ints("n_head") // ranks * head_dim
    kv = np.maximum(1, profile.ints("n_kv_head") // ranks) * head_dim
    inter = profile.ints("n_expanded_embd") // ranks
    shared, low_rank = (
        np.nan_to_num(profile.rows[name].to_numpy(float)).astype(np.int64)
        for name in ("share_expert_dim", "share_q_dim")
    )
    shared = shared // ranks
    qkv = np.where(low_rank > 0, low_rank, heads) + 2 * kv
    more = [(profile.rows[c] == "True").to_numpy(bool) for c in ("use_qk_norm", "attn_output_gate")]
    parts = profile.timed("attn_pre_proj_qkv")  # then attn_pre_proj is their sum
    gemms = {
        "attn_pre_proj": (np.where(more[0] | more[1] | parts, 0, qkv), hidden),
        "attn_pre_proj_qkv": (qkv, hidden),
        "attn_pre_proj_wq": (heads, low_rank),
        "attn_wq_proj": (heads, low_rank),
        "attn_post_proj": (hidden, heads),
        "mlp_up_proj": (2 * inter, hidden),
        "mlp_down_proj": (hidden, inter),
        "share_expert_up_proj": (2 * shared, hidden),
        "share_expert_down_proj": (hidden, shared),
        "lm_head_linear": (profile.ints("vocab_size") // ranks, hidden),
    }
    widths = {
        **dict.fromkeys(("emb", "add", "input_layernorm", "post_attention_layernorm"), hidden),
        **dict.fromkeys(("attn_inter_norm", "attn_pre_proj_q_norm"), low_rank),
        "attn_rope": heads + kv,
        "mlp_act": inter,
        "share_expert_act": shared,
    }
    return gemms, widths


def moe(file: Path) -> tuple[Profile, list[Columns]]:
    """Grouped GEMMs with the load each was timed under, and the routing before them.

    Load ratios are over the experts of the device, so counts come back exactly. Raises
    TraceError.
    """
    profile = Profile(
        file,
        ("moe_grouped_gemm", *ROUTER),
        (
            "num_tokens",
            "num_experts",
            "num_experts_per_device",
            "expert_parallel_size",
            "router_topk",
            "hidden_dim",
            "expert_hidden_dim",
            RANKS,
            "total_routed_tokens",
            "tokens_per_expert_avg",
            "expert_utilization",
            "max_load_ratio",
            "load_imbalance_cv",
        ),
        ("load_distribution",),
        optional_texts=("routing_runtime_path", "gating_runtime_context", BACKEND),
    )
    layer = {
        "tokens": profile.ints("num_tokens"),
        "experts": profile.ints("num_experts"),
        "top_k": profile.ints("router_topk"),
        "hidden": profile.ints("hidden_dim"),
        "ep": profile.ints("expert_parallel_size"),
        "tp": profile.ints(RANKS),
        "dtype": profile.dtype,
    }
    return profile, [
        _grouped_gemm(profile, layer),
        *(_router(profile, name, layer) for name in ROUTER),
    ]


def _grouped_gemm(profile: Profile, layer: dict[str, Any]) -> Columns:
    rows: Mask = profile.timed("moe_grouped_gemm")
    local = profile.ints("num_experts_per_device")
    mean, ratio, used = (
        profile.rows[name].to_numpy(float)
        for name in ("tokens_per_expert_avg", "max_load_ratio", "expert_utilization")
    )
    load = {
        "local_experts": local,
        "active_experts": np.rint(used * local).astype(np.int64),
        "routed_tokens": profile.ints("total_routed_tokens"),
        "max_tokens": np.rint(ratio * mean).astype(np.int64),
        "load_cv": profile.rows["load_imbalance_cv"].to_numpy(float),
        "load": profile.rows["load_distribution"].to_numpy(object),
        "inter": profile.ints("expert_hidden_dim"),
        "backend": profile.rows[BACKEND].replace("", None).to_numpy(object),
        # many kernels behind one call: their sum is never too fast for a launch, so the
        # file's claim stands
        "timing": profile.timing(("moe_grouped_gemm",), ()),
    }
    timed = {**layer, **load, **profile.times("moe_grouped_gemm", np.arange(len(rows)))}
    # some files repeat rows under another name of the routing: one measurement, two rows
    copies = pd.DataFrame(timed).duplicated().to_numpy() & rows
    profile.copies += int(copies.sum())
    kept = {name: values[rows & ~copies] for name, values in timed.items()}
    return {"operator": "grouped_gemm", **kept}


def _router(profile: Profile, operation: str, layer: dict[str, Any]) -> Columns:
    """``backend`` is the routing path, and whether the kernels before it kept the GPU busy."""
    rows: Mask = profile.timed(operation)
    path, context = (
        profile.rows[name].replace("", "unrecorded")
        for name in ("routing_runtime_path", "gating_runtime_context")
    )
    runs = (RANKS, "expert_parallel_size", BACKEND)
    timing = profile.timing(("moe_gating_linear",), runs)
    return {
        "operator": "router",
        "layer": operation,
        **{name: values[rows] for name, values in layer.items()},
        "backend": (path + "/" + context).to_numpy(object)[rows],
        "timing": timing[rows],
        **profile.times(operation, rows),
    }
