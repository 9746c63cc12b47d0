"""The spool that a capture appends to inside the server, and the bundle made from it.

``streams`` reads the files, ``replica`` works out what the rows of one scheduler imply,
``tables`` makes the bundle's tables, ``manifest`` its ``bundle.yaml``, ``ids`` the request
ids. The writing side is ``replay/hooks/frontier_hooks``, which runs without this package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from traces.bundle import SPOOL, Bundle, read_bundle, write_manifest, write_table
from traces.check import table_faults
from traces.errors import TraceError
from traces.schema import TABLES
from traces.spool.ids import external_ids
from traces.spool.kernels import kernels_table
from traces.spool.manifest import spool_manifest
from traces.spool.replica import read_replica
from traces.spool.streams import Spool
from traces.spool.tables import spool_tables


def read_spool(path: Path) -> Bundle:
    """Read the bundle directory ``path`` whose capture was killed before it was closed.

    Takes every stream up to its last complete row; requests still running have the status
    ``unfinished``. ``manifest.notes['spool']`` says what was found. Raises TraceError.
    """
    spool = Spool(path / SPOOL)
    engines = spool.objects("engine")
    if not engines:
        raise TraceError(f"{spool.path}: no engine had started when the capture ended")
    replicas = [read_replica(spool, int(engine["replica"])) for engine in engines]
    names, duplicates = external_ids(
        [r.ids for r in replicas], random_suffix=bool(engines[0]["random_ids"])
    )
    tables, zero_s = spool_tables(spool, replicas, names)
    kernels, profiled = kernels_table(spool, engines, replicas)
    if len(kernels):
        tables["kernels"] = kernels
    faults = [
        fault
        for name, data in tables.items()
        for fault in table_faults(TABLES[name], data, f"{spool.path}: {name}")
    ]
    if faults:
        raise TraceError(faults)
    manifest = spool_manifest(spool, engines, replicas, zero_s)
    if profiled:
        manifest.notes["kernels"] = profiled
    if duplicates:
        manifest.notes["spool"]["request ids seen more than once"] = duplicates
    return Bundle(path, manifest, tables)


def spool_to_bundle(path: Path, notes: dict[str, Any] | None = None) -> Bundle:
    """Turn the spool under ``path`` into a finished bundle, read it back, remove the spool.

    ``notes`` are added to the manifest's. Raises TraceError, leaving the spool in place.
    """
    bundle = read_spool(path)
    model = bundle.model_config()
    if model is not None:
        (path / "model.json").write_text(json.dumps(model, indent=1, sort_keys=True) + "\n")
        bundle.manifest.deployment["model"] = "model.json"
    bundle.manifest.notes["spool"].pop("state")
    bundle.manifest.notes.update(notes or {})
    for name in bundle.tables:
        write_table(path, name, bundle.table(name))
    write_manifest(path, bundle.manifest)
    written = read_bundle(path)
    shutil.rmtree(path / SPOOL)
    return written
