"""The step-time model of a deployed shape from a profile of measured kernels.

Baking prices every operator at every size and fits what the attention tables lack (it needs
scikit-learn, half a minute); the tables then lie in the profile, ``baked/<digest>.npz``, and
later replays of the same shape only read them.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulator.deployment import Engine
from simulator.hardware import Hardware
from simulator.model import ModelSpec
from simulator.step_time.experts import ExpertLoads
from simulator.step_time.tables import OperatorStepTime, StepTables, load_tables, save_tables
from traces.bundle import content_hash
from traces.digest import text_digest
from traces.errors import ConfigError

KERNELS = "kernels.parquet"
FORMAT = 2  # of the baked tables: a change of what baking does changes their digest
BAKED_FOR = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "enable_expert_parallel", "all2all_backend", "num_redundant_experts", "dtype",
    "kv_cache_dtype", "max_num_batched_tokens", "max_num_seqs", "enforce_eager",
    "cudagraph_capture_sizes",
)  # fmt: skip


def deployed_step_time(
    profile: Path,
    model: ModelSpec,
    engine: Engine,
    hardware: Hardware,
    engine_version: str | None,
    loads: ExpertLoads | None = None,
) -> tuple[OperatorStepTime, dict[str, Any]]:
    """The model for one engine, and what to note of it in the manifest.

    Raises ConfigError for what the tables cannot price, TraceError for a damaged profile.
    """
    if engine.quantization or model.quantization:
        raise ConfigError(f"{profile}: step times of quantised models cannot be baked yet")
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
        tables = _bake(profile, model, engine, hardware, engine_version, loads)
        try:
            save_tables(tables, file)
        except OSError:  # a profile that cannot be written to is baked each time
            file.unlink(missing_ok=True)
    note = {"profile": kernels, "fitted_on": [], **tables.notes}
    return OperatorStepTime(tables), note


def _bake(
    profile: Path,
    model: ModelSpec,
    engine: Engine,
    hardware: Hardware,
    engine_version: str | None,
    loads: ExpertLoads | None,
) -> StepTables:
    import pyarrow.parquet as pq

    from simulator.step_time.prices import Prices, select_kernels
    from simulator.step_time.tables import bake

    dtype = model.dtype if engine.dtype == "auto" else engine.dtype
    table = pq.read_table(profile / KERNELS)
    kernels, version = select_kernels(table, hardware, dtype, engine_version, str(profile))
    tables = bake(Prices(kernels, hardware), model, engine, loads)
    tables.notes["kernels_of"] = f"vllm {version} on {hardware.name}, {dtype}"
    return tables
