"""Other predictors of the same held-out rows, each seeing the same remaining rows."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from simulator.operators.library import groups_of
from traces.kernels import aiconfigurator as source
from traces.kernels.aiconfigurator_tables import ELEMENT_BYTES, MAPPERS
from traces.kernels.base import joined
from validation.operators import held_out

Floats = npt.NDArray[np.float64]

NUMBERS = (
    "m", "n", "k", "batch", "query_tokens", "context_tokens", "heads", "kv_heads", "head_dim",
    "window", "tokens", "experts", "top_k", "hidden", "inter", "tp", "ep", "bytes", "ranks",
    "nodes", "sms",
)  # fmt: skip
NAMES = ("kv_dtype", "attention_dtype", "load", "layer")
SYSTEM_OF = {sheet: folder for folder, (sheet, _) in source.SYSTEMS.items()}
SAME = 0.02


class PeerMissing(Exception):
    """A peer is not installed here."""


@dataclass(frozen=True, slots=True)
class Masked:
    """Rows left to learn from, those asked, and the pandas query that parted them."""

    known: pd.DataFrame
    asked: pd.DataFrame
    mask: str


def forest(rows: Masked) -> Floats:
    """A random forest of the raw shape on log seconds, key by key (as Vidur, arXiv:2405.05465)."""
    from sklearn.ensemble import RandomForestRegressor

    both = pd.concat([rows.known, rows.asked], ignore_index=True)
    features = np.stack(
        [both[n].to_numpy(np.float64, na_value=-1) for n in NUMBERS if n in both]
        + [pd.factorize(both[n])[0].astype(float) for n in NAMES if n in both],
        axis=1,
    )
    log_s, known = np.log(both["duration_s"].to_numpy()), np.arange(len(both)) < len(rows.known)
    found = np.full(len(both), np.nan)
    for group in groups_of(both):
        seen, own = group.rows[known[group.rows]], group.rows[~known[group.rows]]
        if len(seen) and len(own):
            model = RandomForestRegressor(100, random_state=0).fit(features[seen], log_s[seen])
            found[own] = np.exp(model.predict(features[own]))
    return found[~known]


def aiconfigurator(rows: Masked) -> Floats:
    """aiconfigurator's own engine on its tables without the held-out rows.

    NaN where it refuses. Infinite where it cannot be asked: where several kernels share a shape
    it knows one of them, so only rows count that it returns from its whole tables. Prefill adds
    a constant for RoPE and the KV write, which is taken off.
    """
    if importlib.util.find_spec(source.PACKAGE) is None:
        raise PeerMissing(f"{source.PACKAGE} is not installed")
    sheet = rows.asked["device"].iloc[0]
    system = SYSTEM_OF[sheet]
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        _tables(system, whole, None)
        _tables(system, cut, rows.mask)
        measured = rows.asked["duration_s"].to_numpy()
        found, full = _Engine(system, cut).ask(rows.asked), _Engine(system, whole).ask(rows.asked)
    prefill = (rows.asked["operator"] == "attention_prefill").to_numpy()
    added = np.where(prefill, np.nanmedian((full - measured)[prefill]) if prefill.any() else 0, 0)
    known = np.abs((full - added) / measured - 1) <= SAME
    return np.where(known, found - added, np.inf)


def _tables(system: str, to: Path, mask: str | None) -> None:
    """A systems folder of one GPU with the newest vLLM and NCCL tables, without masked rows."""
    origin = Path(importlib.util.find_spec(source.PACKAGE).submodule_search_locations[0], "systems")
    data = origin / "data" / system
    files = list(source._files(data, "vllm", "latest"))
    frames, parts = [], []
    for where, file in files:
        frame = source._own_rows(source._frame(file), system, "vllm", where, Counter())
        mapper = MAPPERS.get(Path(str(file)).name.removesuffix("_perf.parquet"))
        columns = mapper(frame)[:1] if mapper else []
        parts += [source._stamped(c, frame, system) for c in columns]
        frames.append((where, file, frame, bool(columns)))
    held = np.zeros(sum(map(len, parts)), bool)
    if mask is not None:
        held = held_out(joined(parts).to_pandas(), mask)
    start = 0
    for where, file, frame, mapped in frames:
        gone = held[start : start + len(frame)] if mapped else np.zeros(len(frame), bool)
        start += len(frame) if mapped else 0
        target = to / "data" / system / where / Path(str(file)).name
        target.parent.mkdir(parents=True, exist_ok=True)
        left = frame[~gone].drop(columns=["owner"])
        pq.write_table(pa.Table.from_pandas(left, preserve_index=False), target)
        for beside in Path(str(file)).parent.glob("*.yaml"):
            shutil.copy(beside, target.parent)
    spec = yaml.safe_load((origin / f"{system}.yaml").read_text())
    nccl = [w.split("/")[-1] for w, _ in files if "/nccl/" in w]
    spec["misc"]["nccl_version"] = nccl[0] if nccl else None
    (to / f"{system}.yaml").write_text(yaml.safe_dump(spec))
    for beside in ("query_versions.yaml", "attention_lane_defaults.yaml"):
        shutil.copy(origin / beside, to)


class _Engine:
    """aiconfigurator's engine over a systems folder, asked row by row."""

    def __init__(self, system: str, systems: Path) -> None:
        from aiconfigurator_core.sdk import common, engine, operations, perf_database

        folders = (systems / "data" / system).glob("*/vllm/*")
        version = max((f.name for f in folders), key=source._version_key)
        perf_database.set_systems_paths(str(systems))
        database = perf_database.get_database(
            system, "vllm", version, systems_paths=[str(systems)], shared_layer=False,
            allow_unlisted_version=True,
        )  # fmt: skip
        self._handle = engine.EngineHandle.for_database(database, systems_path=str(systems))
        self._json, self._ops, self._common = engine.build_ops_json, operations, common
        self._built: dict[Any, str] = {}

    def ask(self, rows: pd.DataFrame) -> Floats:
        """Seconds of rows ``(n,)``; NaN for a refusal."""
        found = np.full(len(rows), np.nan)
        for i, row in enumerate(rows.to_dict("records")):
            try:
                identity, build, call = self._question(row)
                if identity not in self._built:
                    self._built[identity] = self._json([build()])
                answer = self._handle.evaluate_ops_json(self._built[identity], **call)
                found[i] = answer[0][1] / 1e3
            except Exception:  # its refusals are of many kinds
                continue
        return np.where(found > 0, found, np.nan)

    def _question(self, row: dict[str, Any]) -> tuple[Any, Callable[[], Any], dict[str, Any]]:
        """What names the operator, how it is built, and how it is asked."""
        c, o, r = self._common, self._ops, row
        gemm, kv, fmha = c.GEMMQuantMode, c.KVCacheQuantMode, c.FMHAQuantMode
        kind, whole = r["operator"], {k: int(r[k]) for k in NUMBERS if k in r and r[k] == r[k]}
        flat: dict[str, Any] = {"is_context": True, "batch_size": 1, "s": 1}
        identity = (kind, r["dtype"], r["backend"], *(r.get(n) for n in NAMES))
        if kind == "linear":
            n, k = whole["n"], whole["k"]
            return (
                (*identity, n, k),
                lambda: o.GEMM("x", 1, n, k, gemm[r["dtype"]]),
                {**flat, "x": whole["m"]},
            )
        if kind in ("attention_prefill", "attention_decode"):
            names = [whole[n] for n in ("heads", "kv_heads", "window", "head_dim")]
            heads, kv_heads, window, size = names
            more = {"window_size": window, "head_size": size, "lane_order": [r["backend"]]}
            stored, computed = kv[r["kv_dtype"]], fmha[r["dtype"]]
            if kind == "attention_prefill":
                return (
                    (*identity, *names),
                    lambda: o.ContextAttention("x", 1, heads, kv_heads, stored, computed, **more),
                    {**self._batch(whole, True), "prefix": whole["context_tokens"]},
                )
            return (
                (*identity, *names),
                lambda: o.GenerationAttention("x", 1, heads, kv_heads, stored, **more),
                self._batch(whole, False),
            )
        if kind in ("mla_prefill", "mla_decode"):
            prefill, heads = kind == "mla_prefill", whole["heads"]
            stored, computed = kv[r["kv_dtype"]], fmha[r["attention_dtype"]]
            return (
                (*identity, heads),
                lambda: o.MLAModule("x", 1, prefill, heads, stored, computed, gemm[r["dtype"]]),
                self._batch(whole, prefill),
            )
        if kind == "grouped_gemm":
            names = [whole[n] for n in ("hidden", "inter", "top_k", "experts", "tp", "ep")]
            quant = c.MoEQuantMode[r["dtype"]]
            return (
                (*identity, *names),
                lambda: o.MoE("x", 1, *names, quant, r["load"], 1),
                {**flat, "x": whole["tokens"]},
            )
        if kind == "all_to_all" and "hidden" in whole:
            names = [whole[n] for n in ("hidden", "top_k", "experts", "ep", "nodes", "sms")]
            keys = ("hidden_size", "topk", "num_experts", "moe_ep_size", "node_num", "sms")
            shape = {"phase": r["layer"], "comm_backend": r["backend"],
                     **dict(zip(keys, names, strict=True))}  # fmt: skip
            return (
                (*identity, *names),
                lambda: o.MoEAllToAll("x", 1, comm_dtype=r["dtype"], **shape),
                {**flat, "x": whole["tokens"]},
            )
        ranks, dtype = whole["ranks"], {"float16": "half"}.get(r["dtype"], r["dtype"])
        elements = {**flat, "x": whole["bytes"] // ELEMENT_BYTES[dtype]}
        if r["backend"] == "NCCL":
            name, quant = kind.replace("all_to_all", "alltoall"), c.CommQuantMode[dtype]
            return (*identity, ranks), lambda: o.NCCL("x", 1, name, 1, ranks, quant), elements
        return (*identity, ranks), lambda: o.CustomAllReduce("x", 1, 1, ranks), elements

    def _batch(self, row: dict[str, int], prefill: bool) -> dict[str, Any]:
        length = row["query_tokens"] if prefill else row["context_tokens"] + 2
        return {"is_context": prefill, "batch_size": row["batch"], "s": length}


PEERS: dict[str, Callable[[Masked], Floats]] = {"aiconfigurator": aiconfigurator, "forest": forest}
