"""The prices of a deployed engine, from a profile of measured kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, flock
from pathlib import Path

import pyarrow.parquet as pq

from simulator.deployment import Engine
from simulator.hardware import Hardware
from simulator.model import ModelSpec
from simulator.operators import FittedOperator, Library, kept_library, save_library
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

    Processes that share a profile fit one after the other, each only what is still missing.

    ``hashed`` is the hash of the profile's kernels. Raises ConfigError, TraceError.
    """
    types = kernel_types(model, engine)
    file = profile / TABLES["kernels"].file
    table = pq.read_table(file)
    kernels, version = select_kernels(
        table, hardware, types, engine_version, str(profile), engine.moe_backend
    )
    with locked(file):  # what lies there is whole
        library = kept_library(profile, hashed) or Library(fitted_on={"kernels": hashed})

    @contextmanager
    def alone() -> Iterator[None]:
        with locked(file):
            library.operators[:] = _with(library, kept_library(profile, hashed))
            known = len(library.operators)
            yield
            if len(library.operators) > known:
                with suppress(OSError):  # a profile that cannot be written to
                    save_library(library, profile)

    unmeasured = Unmeasured(kernels, library, progress, alone)
    yield (
        Prices(kernels, hardware, types, unmeasured, only_with_launch(table, hardware)),
        f"vllm {version} on {hardware.name}, {types.dense}",
    )


def _with(library: Library, others: Library | None) -> list[FittedOperator]:
    """The operators of a library, and what another one has beside them."""

    def known_by(operator: FittedOperator) -> tuple[str, ...]:
        return (operator.family, *operator.key.values(), *operator.kinds, *operator.features)

    own = {known_by(operator) for operator in library.operators}
    more = others.operators if others is not None else []
    return [*library.operators, *(o for o in more if known_by(o) not in own)]


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Holds a file's lock; none where the file system knows no locks."""
    with file.open("rb") as opened:
        with suppress(OSError):
            flock(opened, LOCK_EX)
        yield
