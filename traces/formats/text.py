"""Text files, compressed with gzip or not: read as they are, written where the name says."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from traces.errors import TraceError

HEAD_CHARS = 1 << 16


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed. Raises TraceError if it cannot be read."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: not readable as gzip: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None


def read_text(path: Path) -> str:
    """The content of a text file, decompressed. Raises TraceError, naming the line."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TraceError(f"{path}:{line}: not UTF-8 text") from None


def read_head(path: Path) -> str:
    """The first ``HEAD_CHARS`` characters of a text file, decompressed. Raises TraceError."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if zipped else raw as stream:
                data = stream.read(HEAD_CHARS)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: not readable as gzip: {error}") from None
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    if b"\x00" in data:
        raise TraceError(f"{path}: not a text file")
    return data.decode("utf-8-sig", errors="replace")


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
