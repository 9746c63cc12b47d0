"""Where the two sides come from, and whether one was fitted to the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.digest import batches_of, table_digest, text_digest
from traces.errors import TraceError
from traces.schema import REQUESTS
from traces.workload import WARM_UP


def describe(bundle: Bundle, digest: str) -> dict[str, Any]:
    """One bundle's identity; ``name`` is its directory's, so that it means the same elsewhere."""
    manifest = bundle.manifest
    return {
        "name": bundle.path.resolve().name,
        "hash": digest,
        "kind": manifest.kind,
        "vantage": manifest.vantage,
        "engine": manifest.engine,
        "engine_version": manifest.engine_version,
        "command": [str(word) for word in manifest.command],
        "seed": manifest.seed,
        "deployment_hash": deployment_hash(bundle),
    }


def deployment_hash(bundle: Bundle) -> str:
    """Digest of the deployment and its model.

    Left out: where the files lie, and num_gpu_blocks, which the engine's memory profiling
    finds anew in each run.
    """
    content = copy.deepcopy(bundle.manifest.deployment)
    for key in ("model", "operators", "launch"):
        content.pop(key, None)
    clusters = content.get("clusters")
    for cluster in clusters if isinstance(clusters, list) else ():
        if isinstance(cluster, dict) and isinstance(cluster.get("engine"), dict):
            cluster["engine"].pop("num_gpu_blocks", None)
    return text_digest({"deployment": content, "model": bundle.model_config()})


def workload_hash(bundle: Bundle) -> str:
    """Digest of what was asked: ids and lengths of the requests, warm-ups left out."""
    table = bundle.requests.select(["request_id", "prompt_tokens", "output_tokens"])
    ids = table.column("request_id")
    table = table.filter(pc.invert(pc.starts_with(ids, WARM_UP))).sort_by("request_id")
    return table_digest(REQUESTS, batches_of(table))


def profile(simulated: Bundle) -> dict[str, Any]:
    """The operator profile the simulator used: its hash and the hashes it was fitted on."""
    note = simulated.manifest.notes.get("operators")
    if not isinstance(note, Mapping):
        return {"hash": None, "fitted_on": None}
    fitted = note.get("fitted_on")
    digests = None
    if isinstance(fitted, list):
        digests = [str(f.get("hash")) if isinstance(f, Mapping) else str(f) for f in fitted]
    return {"hash": note.get("profile"), "fitted_on": digests}


def refuse_leak(provenance: Mapping[str, Any]) -> None:
    """Raise TraceError unless the simulation is known to be fitted on none of the runs.

    ``provenance`` is a scorecard's.
    """
    name = provenance["simulated"]["name"]
    if provenance["holdout"]:
        return
    if provenance["holdout"] is None:
        raise TraceError(f"{name}: not known what its operator profile was fitted on: no hold-out")
    seen = set(provenance["profile"]["fitted_on"])
    runs = [provenance["measured"], *provenance["repeats"]]
    leaked = ", ".join(r["name"] for r in runs if r["hash"] in seen)
    raise TraceError(f"{name}: its operator profile was fitted on {leaked}: no hold-out")


def holdout(fitted_on: Sequence[str] | None, measured: Sequence[str]) -> bool | None:
    """Whether none of the ``measured`` runs was fitted; None if the profile does not say."""
    return None if fitted_on is None else not set(fitted_on) & set(measured)
