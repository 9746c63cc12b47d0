"""The step-time model of a deployed shape from a profile of measured kernels.

Baking prices every operator at every size; what was not measured at its very shape is asked
of a model fitted to what was (up to minutes), which is kept in the profile. The tables then
lie there too, ``baked/<digest>.npz``, and later replays of the same deployment only read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulator.deployment import Engine
from simulator.hardware import Hardware
from simulator.model import ModelSpec
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.overhead import load_overhead
from simulator.step_time.tables import OperatorStepTime, StepTables, load_tables, save_tables
from traces.bundle import content_hash
from traces.digest import text_digest

KERNELS = "kernels.parquet"
FORMAT = 9  # of the baked tables: a change of what baking does changes their digest
BAKED_FOR = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "enable_expert_parallel", "enable_eplb", "all2all_backend", "num_redundant_experts", "dtype",
    "kv_cache_dtype", "quantization", "moe_backend", "max_model_len",
    "max_num_batched_tokens", "max_num_seqs", "enforce_eager",
    "cudagraph_capture_sizes",
)  # fmt: skip


def deployed_step_time(
    profile: Path,
    model: ModelSpec,
    engine: Engine,
    hardware: Hardware,
    engine_version: str | None,
    loads: ExpertLoads | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[OperatorStepTime, dict[str, Any]]:
    """The model for one engine, and what to note of it in the manifest.

    Raises ConfigError for what the tables cannot price, TraceError for a damaged profile.
    """
    kernels = content_hash(profile / KERNELS)
    shape = {
        "format": FORMAT,
        "kernels": kernels,
        "model": asdict(model),
        "engine": {name: getattr(engine, name) for name in BAKED_FOR},
        "hardware": hardware.model_dump(mode="json"),
        "engine_version": engine_version,
        "experts": loads.said if loads is not None else None,
    }
    file = profile / "baked" / f"{text_digest(shape)}.npz"
    tables = load_tables(file) if file.is_file() else None
    if tables is None:
        tables = _bake(profile, kernels, model, engine, hardware, engine_version, loads, progress)
        try:
            save_tables(tables, file)
        except OSError:  # a profile that cannot be written to is baked each time
            file.unlink(missing_ok=True)
    note = {"profile": kernels, "fitted_on": [], **tables.notes}
    overhead = load_overhead(profile)
    if overhead is None:
        return OperatorStepTime(tables), note
    overhead.check(engine_version, hardware.name, str(profile))
    constants = overhead.constants()
    fitted_on = [bundle["hash"] for bundle in overhead.fitted_on]
    return OperatorStepTime(tables, **constants), note | constants | {"fitted_on": fitted_on}


def _bake(
    profile: Path, hashed: str, model: ModelSpec, engine: Engine, hardware: Hardware,
    engine_version: str | None, loads: ExpertLoads | None, progress: Callable[[str], None],
) -> StepTables:  # fmt: skip
    from simulator.step_time.baking import bake
    from simulator.step_time.profile_prices import profile_prices

    with profile_prices(profile, hashed, model, engine, hardware, engine_version, progress) as (
        prices, kernels_of,
    ):  # fmt: skip
        tables = bake(prices, model, engine, loads)
    tables.notes["kernels_of"] = kernels_of
    tables.notes = json.loads(json.dumps(tables.notes, sort_keys=True))  # as they will be read
    return tables
