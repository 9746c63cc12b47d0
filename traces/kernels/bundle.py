"""The kernels of a captured bundle: its own ``kernels.parquet``, as it is."""

from __future__ import annotations

from pathlib import Path

from traces.bundle import MANIFEST, read_bundle
from traces.errors import TraceError
from traces.kernels.base import Reading, Selection
from traces.schema import KERNELS


class BundleKernels:
    """What ``frontier capture --profile-kernels`` recorded; the data is its owner's."""

    name = "bundle"
    licence = "that of the bundle"

    def read(self, path: Path, wanted: Selection) -> Reading:
        """All devices: a capture names them as drivers do, and so cannot choose by sheet."""
        bundle = read_bundle(path, eager=False)
        if KERNELS.name not in bundle:
            raise TraceError(f"{path}: no {KERNELS.file} in the bundle (capture --profile-kernels)")
        return Reading(bundle.table(KERNELS.name), [path / MANIFEST, path / KERNELS.file])
