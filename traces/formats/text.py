"""Writing text files, compressed where the name ends in .gz."""

from __future__ import annotations

import gzip
from pathlib import Path

from traces.errors import TraceError


def write_text(path: Path, text: str) -> None:
    """Write a new file, the same bytes for the same text. Raises TraceError if it exists."""
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise TraceError(f"{path}: exists; choose another --out") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
