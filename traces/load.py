"""A workload from a path: a bundle, or a file of any format in ``traces/formats``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from traces.bundle import is_bundle, read_bundle
from traces.errors import TraceError, nearest
from traces.workload import Workload, bundle_workload

if TYPE_CHECKING:
    from traces.formats.base import Format

BUNDLE = "bundle"


def load_workload(path: str | Path, fmt: str | None = None) -> Workload:
    """Read a workload from a bundle or a file of any known format, recognised by content.

    ``fmt`` forces a name of ``traces.formats.FORMATS``, or ``bundle``. Compressed files
    (.gz) are read as they are. Raises TraceError with all faults, among them: no such
    file, no known format, no request in it.
    """
    path = Path(path)
    source = source_format(path, fmt)
    return source.read(path) if source else bundle_workload(read_bundle(path))


def source_format(path: Path, fmt: str | None = None) -> Format | None:
    """The format to read ``path`` in, None for a bundle; ``fmt`` forces it by name.

    Raises TraceError: no such file, no such format, no known format.
    """
    # The readers of foreign files are loaded only for them: a bundle needs none.
    from traces.formats import FORMATS, recognise

    if not path.exists():
        raise TraceError(f"{path}: no such file or directory")
    if fmt is not None and fmt not in (BUNDLE, *FORMATS):
        raise TraceError(f"unknown workload format {fmt!r}{nearest(fmt, (BUNDLE, *FORMATS))}")
    if fmt == BUNDLE or (fmt is None and is_bundle(path)):
        return None
    if path.is_dir():
        raise TraceError(f"{path}: a directory, but not a bundle (no bundle.yaml, no spool)")
    return FORMATS[fmt] if fmt else recognise(path)
