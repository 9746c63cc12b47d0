"""Which rows of a table of kernels a deployment runs on: device, version, types, backend."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from simulator.hardware import Hardware
from simulator.step_time.kernel_types import SUBSTITUTES, KernelTypes
from traces.errors import ConfigError

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
SKEWED = "skew"  # layer label of rows measured to tell unequal contexts from equal ones
EVEN = ("balanced",)  # labels of an even load
IDENTITY = ("timing", "engine", "engine_version", "backend", "node", "dtype")


def where(kernels: pa.Table, values: Mapping[str, int | str]) -> pa.Table:
    """Rows that hold all of ``values``; none where a column is absent."""
    for name, value in values.items():
        if name not in kernels.column_names:
            return kernels.slice(0, 0)
        kernels = kernels.filter(pc.equal(kernels.column(name), value))
    return kernels


def one_backend(kernels: pa.Table) -> pa.Table:
    """Rows that may be averaged: kernels of several kinds never mix.

    Kernel times before those with launch, the engine's own before NCCL's, then the most rows.
    """
    names = [n for n in IDENTITY if n in kernels.column_names]
    counts = kernels.group_by(names).aggregate([("duration_s", "count")]).to_pylist()
    if not counts:
        return kernels
    best = min(
        counts,
        key=lambda c: (
            c["timing"] != "kernel", c["engine"] == "nccl", -c["duration_s_count"], str(c),
        ),
    )  # fmt: skip
    for name in names:
        column = kernels.column(name)
        same = pc.is_null(column) if best[name] is None else pc.equal(column, best[name])
        kernels = kernels.filter(same)
    return kernels


def select_kernels(
    kernels: pa.Table,
    hardware: Hardware,
    types: KernelTypes,
    engine_version: str | None,
    source: str,
    moe_backend: str = "auto",
) -> tuple[pa.Table, str]:
    """Rows for one device, of one engine version, and that version.

    The deployment's version if it was measured, else the latest. Kernel times only; of
    collectives also those with launch. Experts run on backends whose name holds
    ``moe_backend``, unless it is "auto". Raises ConfigError.
    """
    mine = where(kernels, {"device": hardware.name})
    if not len(mine):
        known = ", ".join(sorted(set(kernels.column("device").to_pylist())))
        raise ConfigError(f"{source}: no kernel of {hardware.name} (it has: {known})")
    collective = pc.is_in(mine.column("operator"), pa.array(COLLECTIVES))
    wanted = sorted({types.plain, types.dense, types.experts})
    near = [SUBSTITUTES[name] for name in wanted if name in SUBSTITUTES]
    timed = pc.equal(mine.column("timing"), "kernel")
    typed = pc.is_in(mine.column("dtype"), pa.array(wanted + near))
    compute = mine.filter(pc.and_(pc.invert(collective), pc.and_(timed, typed)))
    if "kv_dtype" in mine.column_names:
        cached = compute.column("kv_dtype")
        compute = compute.filter(pc.or_kleene(pc.is_null(cached), pc.equal(cached, types.cache)))
    versions = sorted(set(compute.column("engine_version").to_pylist()), key=_version)
    if not versions:
        raise ConfigError(f"{source}: no {' or '.join(wanted)} kernel times of {hardware.name}")
    asked = (engine_version or "").split("+")[0]
    version = asked if asked in versions else versions[-1]
    compute = where(compute, {"engine_version": version})
    if moe_backend != "auto":
        compute = _only_experts_of(moe_backend, compute, source)
    return pa.concat_tables([compute, mine.filter(collective)]), version


def only_with_launch(kernels: pa.Table, hardware: Hardware) -> frozenset[str]:
    """Operators of a device of which no kernel time was measured, only times with launch."""
    mine = where(kernels, {"device": hardware.name})
    timed = where(mine, {"timing": "kernel"}).column("operator").to_pylist()
    return frozenset(mine.column("operator").to_pylist()) - {*timed, *COLLECTIVES}


def _only_experts_of(name: str, kernels: pa.Table, source: str) -> pa.Table:
    experts = where(kernels, {"operator": "grouped_gemm"})
    known = set(experts.column("backend").to_pylist()) if "backend" in kernels.column_names else ()
    own = sorted(b for b in known if b and name in b)
    if not own:
        raise ConfigError(f"{source}: no grouped_gemm kernel of a backend named {name!r}")
    other = pc.not_equal(kernels.column("operator"), "grouped_gemm")
    return kernels.filter(pc.or_kleene(other, pc.is_in(kernels.column("backend"), pa.array(own))))


def _version(text: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in text.split(".")]
