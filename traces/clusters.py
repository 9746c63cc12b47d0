"""Clusters of several bundles as the clusters of one deployment.

Clusters of the same name and settings become one with all their replicas, renumbered in the
order of the bundles. A cluster that shares only its name takes that of its bundle's
directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.errors import TraceError

_ELSEWHERE = ("model", "clusters", "routing")  # parts of a deployment that need no agreement


class Clusters:
    """The clusters of a deployment that grows by one bundle after the other.

    ``notes`` tells which clusters were renamed or renumbered, and what that cost.
    """

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._engines: dict[str, int] = {}
        self._schedulers: dict[str, int] = {}
        self._rest: dict[str, Any] | None = None
        self._routing: Any = None

    def add(self, bundle: Bundle, tables: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
        """Take in the bundle's clusters; returns its tables with the names they have here.

        Raises TraceError where the deployments contradict each other.
        """
        deployment = bundle.manifest.deployment
        rest = {k: v for k, v in deployment.items() if k not in _ELSEWHERE}
        if self._rest is None:
            self._rest, self._routing = rest, deployment.get("routing")
        for key in sorted({*rest, *self._rest}):
            if rest.get(key) != self._rest.get(key):
                raise TraceError(f"{bundle.path}: deployment.{key} is not that of the others")
        clusters = deployment.get("clusters") or []
        if not isinstance(clusters, list) or not all(isinstance(c, dict) for c in clusters):
            raise TraceError(f"{bundle.path}: deployment.clusters must be a list of clusters")
        declared = {str(c.get("name")): c for c in clusters}
        seen = _schedulers_seen(tables)
        renamed, offset = {}, {}
        for name in dict.fromkeys([*declared, *sorted(seen)]):
            settings = dict(declared.get(name, {}))
            engines = int(settings.pop("replicas", 1))
            ranks = int(settings.get("engine", {}).get("data_parallel_size", 1))
            target = self._target(name, settings, bundle)
            renamed[name], offset[name] = target, self._schedulers.get(target, 0)
            self._settings[target] = {**settings, "name": target}
            self._engines[target] = self._engines.get(target, 0) + engines
            self._schedulers[target] = offset[name] + max(engines * ranks, seen.get(name, 0))
            if target != name or offset[name]:
                self.notes.setdefault("renumbered", []).append(
                    f"{bundle.path.name}: {name} is {target}, its replicas from {offset[name]}"
                )
        return self._renumbered(bundle, tables, renamed, offset)

    def deployment(self) -> dict[str, Any]:
        """The deployment of all bundles so far, without its model."""
        clusters = [
            {**settings, "replicas": self._engines[name]}
            for name, settings in self._settings.items()
        ]
        found = {"clusters": clusters, "routing": self._routing, **(self._rest or {})}
        return {k: v for k, v in found.items() if v}

    def _target(self, name: str, settings: dict[str, Any], bundle: Bundle) -> str:
        if self._settings.get(name, {**settings, "name": name}) == {**settings, "name": name}:
            return name
        target = bundle.path.name
        if target in self._settings:
            raise TraceError(
                f"{bundle.path}: cluster {name!r} differs from another of that name, and "
                f"{target!r} is taken too: rename the directory"
            )
        return target

    def _renumbered(
        self,
        bundle: Bundle,
        tables: Mapping[str, pa.Table],
        renamed: Mapping[str, str],
        offset: Mapping[str, int],
    ) -> dict[str, pa.Table]:
        if not any(offset.values()) and all(new == old for old, new in renamed.items()):
            return dict(tables)
        requests = tables["requests"]
        if "transfers" in tables or "decode_replica" in requests.column_names:
            raise TraceError(
                f"{bundle.path}: its clusters cannot be renamed: KV transfers refer to them; "
                "list it first"
            )
        if "routing" in tables:
            left = self.notes.setdefault("routing left out, its lists count other replicas", [])
            left.append(bundle.path.name)
        return {
            name: _relabelled(data, renamed, offset)
            for name, data in tables.items()
            if name != "routing"
        }


def _schedulers_seen(tables: Mapping[str, pa.Table]) -> dict[str, int]:
    """How many replicas of each cluster the tables speak of: the highest number plus one."""
    seen: dict[str, int] = {}
    for data in tables.values():
        if not {"cluster", "replica"} <= {*data.column_names}:
            continue
        highest = data.group_by("cluster").aggregate([("replica", "max")])
        for row in highest.to_pylist():
            if row["cluster"] is not None and row["replica_max"] is not None:
                seen[row["cluster"]] = max(seen.get(row["cluster"], 0), row["replica_max"] + 1)
    return seen


def _relabelled(data: pa.Table, renamed: Mapping[str, str], offset: Mapping[str, int]) -> pa.Table:
    if "cluster" not in data.column_names:
        return data
    codes = data.column("cluster").combine_chunks().dictionary_encode()
    names = codes.dictionary.to_pylist()
    cluster = pa.array([renamed[n] for n in names], pa.string()).take(codes.indices)
    data = data.set_column(data.column_names.index("cluster"), "cluster", cluster)
    if "replica" in data.column_names:
        moved = pa.array([offset[n] for n in names], pa.int64()).take(codes.indices)
        replica = pc.add(data.column("replica").combine_chunks(), moved)
        data = data.set_column(data.column_names.index("replica"), "replica", replica)
    return data
