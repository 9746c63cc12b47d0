"""A bundle on disk: a directory with ``bundle.yaml`` and one parquet file per table.

``read_bundle`` checks everything it touches and reports all faults at once;
``write_bundle`` writes the same bytes for the same content. A bundle is data only.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from traces.check import table_faults
from traces.digest import batches_of, new_hash, table_digest, text_digest
from traces.errors import TraceError, nearest
from traces.schema import KINDS, SCHEMA_VERSION, TABLES, VANTAGES

MANIFEST = "bundle.yaml"
SPOOL = "spool"


@dataclass(slots=True)
class Manifest:
    """The content of ``bundle.yaml``.

    ``clock`` names the clock of the times and, where known, the epoch second of the
    bundle's zero; ``deployment`` is a deployment file's content whose ``model`` is a
    file in the bundle; ``ignored`` lists what the producer did not honour.
    """

    kind: str
    vantage: str = "engine"
    schema: int = SCHEMA_VERSION
    engine: str = ""
    engine_version: str = ""
    clock: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    deployment: dict[str, Any] = field(default_factory=dict)
    hash_block_tokens: int | None = None
    seed: int | None = None
    ignored: list[str] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


class Bundle:
    """A bundle opened for reading; tables are read and checked when first asked for."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        data: dict[str, pa.Table],
        skip: Collection[str] = (),
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._data = data
        self._skip = frozenset(skip)

    def __contains__(self, table: str) -> bool:
        return table in self._data or (self.path / TABLES[table].file).is_file()

    @cached_property
    def requests(self) -> pa.Table:
        """The ``requests`` table."""
        return self.table("requests")

    def table(self, name: str) -> pa.Table:
        """Return a table of the bundle, checked.

        Raises TraceError if it is absent or unsound.
        """
        if name not in self._data:
            self._data[name] = _read_table(self.path, name, self._skip)
        return self._data[name]

    def table_hash(self, name: str) -> str:
        """Hex digest of a table's rows; what was not read, or not whole, is streamed."""
        table = TABLES[name]
        whole = name in self._data and self._skip.isdisjoint(table.by_name)
        source = self._data[name] if whole else self.path / table.file
        try:
            return table_digest(table, batches_of(source))
        except (pa.ArrowException, OSError) as error:
            what = str(error).splitlines()[0]
            raise TraceError(f"{self.path / table.file}: not readable: {what}") from None

    @property
    def tables(self) -> list[str]:
        """Names of the tables the bundle holds."""
        return [name for name in TABLES if name in self]

    def model_config(self) -> dict[str, Any] | None:
        """The HF config.json shipped inside the bundle, if any. Raises TraceError."""
        model = self.manifest.deployment.get("model")
        if not isinstance(model, str):
            return None
        file = inside(self.path, model)
        try:
            return json.loads(file.read_text()) if file.is_file() else None
        except ValueError as error:
            raise TraceError(f"{file}: not JSON: {error}") from None


def bundle_hash(bundle: Bundle) -> str:
    """Hex digest of what a bundle says: manifest, model and tables, not how it is stored.

    The command, the notes and the place of the model file are left out: they do not change
    what was measured. Equal for a bundle, its rewritten copy and the spool it came from.
    Raises TraceError.
    """
    content = asdict(bundle.manifest)
    for key in ("command", "notes"):
        content.pop(key)
    content["deployment"] = {k: v for k, v in content["deployment"].items() if k != "model"}
    return text_digest(
        {
            "manifest": content,
            "model": bundle.model_config(),
            "tables": {name: bundle.table_hash(name) for name in bundle.tables},
        }
    )


def content_hash(file: Path) -> str:
    """Hex digest of a file's bytes. Raises TraceError if it cannot be read."""
    digest = new_hash()
    try:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise TraceError(f"{file}: {error.strerror}") from None
    return digest.hexdigest()


def inside(root: Path, relative: str) -> Path:
    """Resolve a path named in a bundle; raises TraceError if it leaves the bundle."""
    pure = PurePosixPath(relative)
    resolved = (root / pure).resolve()
    if pure.is_absolute() or not resolved.is_relative_to(root.resolve()):
        raise TraceError(f"{root / MANIFEST}: path {relative!r} leaves the bundle")
    return resolved


def is_bundle(path: Path) -> bool:
    """Whether ``path`` looks like a bundle (finished, or the spool of a killed capture)."""
    return (path / MANIFEST).is_file() or (path / SPOOL).is_dir()


def read_bundle(path: str | Path, *, eager: bool = True, skip: Collection[str] = ()) -> Bundle:
    """Open a bundle; with ``eager`` read and check every table and report all faults at once.

    Optional columns named in ``skip`` are neither read nor checked: large bundles are read
    for their times by leaving out ``block_hashes``.

    A directory that holds only the spool of a killed capture is read up to its last
    complete row (``manifest.notes['spool']`` says so). Raises TraceError.
    """
    path = Path(path)
    if not path.is_dir():
        raise TraceError(f"{path}: not a bundle (no such directory)")
    if not (path / MANIFEST).is_file() and (path / SPOOL).is_dir():
        from traces.spool import read_spool

        return read_spool(path)
    manifest = _read_manifest(path)
    bundle = Bundle(path, manifest, {}, skip)
    faults: list[str] = []
    for name in ["requests", *(t for t in bundle.tables if t != "requests")] if eager else []:
        try:
            bundle.table(name)
        except TraceError as error:
            faults += error.faults
    if faults:
        raise TraceError(faults)
    return bundle


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise TraceError(f"{path}: not a bundle (no {MANIFEST})")
    try:
        raw = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise TraceError(f"{file}: expected keys, got {type(raw).__name__}")
    known = {f.name for f in fields(Manifest)}
    faults = [f"{file}: unknown key {k!r}{nearest(str(k), known)}" for k in raw if k not in known]
    if raw.get("schema") != SCHEMA_VERSION:
        found = raw.get("schema")
        faults.append(f"{file}: schema is {found!r}, this version reads {SCHEMA_VERSION}")
    for key, choices in (("kind", KINDS), ("vantage", VANTAGES)):
        if raw.get(key, "engine") not in choices:
            faults.append(f"{file}: {key} is {raw.get(key)!r}{nearest(str(raw.get(key)), choices)}")
    for key, kind in (("deployment", dict), ("clock", dict), ("ignored", list), ("command", list)):
        if key in raw and not isinstance(raw[key], kind):
            faults.append(f"{file}: {key} must be a {kind.__name__}")
    hash_block_tokens = raw.get("hash_block_tokens")
    if hash_block_tokens is not None and not (
        isinstance(hash_block_tokens, int) and hash_block_tokens > 0
    ):
        faults.append(f"{file}: hash_block_tokens must be a positive number of tokens")
    if faults:
        raise TraceError(faults)
    return Manifest(**raw)


def _read_table(path: Path, name: str, skip: frozenset[str]) -> pa.Table:
    table, file = TABLES[name], path / TABLES[name].file
    if not file.is_file():
        raise TraceError(f"{file}: missing")
    try:
        kept = [c for c in pq.read_schema(file).names if c not in skip] if skip else None
        data = pq.ParquetFile(file, memory_map=True).read(columns=kept)
    except (pa.ArrowException, OSError) as error:
        raise TraceError(f"{file}: not readable as parquet: {str(error).splitlines()[0]}") from None
    faults = table_faults(table, data, str(file))
    if faults:
        raise TraceError(faults)
    return data.cast(table.arrow_schema(data.column_names))


def write_bundle(
    path: str | Path,
    manifest: Manifest,
    tables: Mapping[str, pa.Table],
    *,
    model_config: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write a bundle and return it.

    ``model_config`` is written as ``model.json`` and becomes the deployment's ``model``.
    Raises TraceError if the directory holds a measured bundle (never overwritten), or
    something that is not a bundle.
    """
    path = claim_directory(path)
    if model_config is not None:
        (path / "model.json").write_text(json.dumps(model_config, indent=1, sort_keys=True) + "\n")
        manifest.deployment = {**manifest.deployment, "model": "model.json"}
    for name, data in tables.items():
        write_table(path, name, data)
    write_manifest(path, manifest)
    return Bundle(path, manifest, dict(tables))


def claim_directory(path: str | Path) -> Path:
    """Make ``path`` an empty directory for a bundle; an older *simulated* bundle is replaced."""
    path = Path(path)
    if (path / MANIFEST).is_file():
        if _read_manifest(path).kind == "measured":
            raise TraceError(f"{path}: holds a measured bundle, which is never overwritten")
        for name in (MANIFEST, "model.json", *(t.file for t in TABLES.values())):
            (path / name).unlink(missing_ok=True)
    elif path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise TraceError(f"{path}: exists and is not a bundle; choose another --out")
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_table(path: Path, name: str, data: pa.Table) -> None:
    """Write one table as parquet, with the declared types; columns of nulls are left out."""
    kept = [n for n in data.column_names if data.column(n).null_count < len(data) or not len(data)]
    kept = [n for n in kept if len(data) or TABLES[name].by_name[n].required]
    data = data.select(kept).cast(TABLES[name].arrow_schema(kept))
    pq.write_table(data, path / TABLES[name].file, compression="zstd")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``bundle.yaml``, the file that makes the directory a bundle; written last."""
    content = {k: v for k, v in asdict(manifest).items() if v not in (None, "", [], {})}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    (path / MANIFEST).write_text(text)
