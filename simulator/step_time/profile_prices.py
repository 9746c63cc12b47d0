"""The prices of a deployed engine, from a profile of measured kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq

from simulator.deployment import Engine
from simulator.hardware import Hardware
from simulator.model import ModelSpec
from simulator.operators import Library, kept_library, save_library
from simulator.step_time.kernel_types import kernel_types
from simulator.step_time.prices import Prices
from simulator.step_time.select_kernels import only_with_launch, select_kernels
from simulator.step_time.unmeasured import Unmeasured
from traces.schema import TABLES


@contextmanager
def profile_prices(
    profile: Path,
    hashed: str,
    model: ModelSpec,
    engine: Engine,
    hardware: Hardware,
    engine_version: str | None,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[tuple[Prices, str]]:
    """The prices, and what kernels they are of; models fitted meanwhile are kept in the profile.

    ``hashed`` is the hash of the profile's kernels. Raises ConfigError, TraceError.
    """
    types = kernel_types(model, engine)
    table = pq.read_table(profile / TABLES["kernels"].file)
    kernels, version = select_kernels(
        table, hardware, types, engine_version, str(profile), engine.moe_backend
    )
    library = kept_library(profile, hashed) or Library(fitted_on={"kernels": hashed})
    kept = len(library.operators)
    unmeasured = Unmeasured(kernels, library, progress)
    yield (
        Prices(kernels, hardware, types, unmeasured, only_with_launch(table, hardware)),
        f"vllm {version} on {hardware.name}, {types.dense}",
    )
    if len(library.operators) > kept:
        with suppress(OSError):  # a profile that cannot be written to
            save_library(library, profile)
