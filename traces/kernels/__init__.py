"""Operator timings measured by others, read into the one ``kernels`` table.

One file per source behind ``KernelSource``; ``SOURCES`` names them all.
"""

from __future__ import annotations

from traces.errors import ConfigError, nearest
from traces.kernels.aiconfigurator import AIConfigurator
from traces.kernels.base import KernelSource
from traces.kernels.bundle import BundleKernels
from traces.kernels.frontier import Frontier
from traces.kernels.network import Network
from traces.kernels.rtx import RTX

SOURCES: dict[str, KernelSource] = {
    source.name: source
    for source in (AIConfigurator(), BundleKernels(), Frontier(), Network(), RTX())
}


def source_named(name: str) -> KernelSource:
    """The source of that name. Raises ConfigError naming the known ones."""
    if name not in SOURCES:
        raise ConfigError(f"unknown kernel source {name!r}{nearest(name, SOURCES)}")
    return SOURCES[name]
