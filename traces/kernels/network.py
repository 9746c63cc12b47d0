"""Collectives between GPUs: Vidur's tables of whole nodes (MIT), and logs of nccl-tests.

``<node>/{all_reduce,send_recv}.csv`` holds milliseconds and bytes for ranks spread
``devices_per_node`` to a node; a log (``*.out``) says itself what it is. Both launch every
call from the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import content_hash
from traces.errors import TraceError, nearest
from traces.kernels.base import Reading, Selection, joined, kernel_rows
from traces.kernels.csv_table import read_csv
from traces.kernels.nccl_tests import read_log

MS = 1e-3
NODES = {  # folder -> device; GPUs bridged in pairs are PCIe cards
    "a100_dgx": "a100_sxm_80gb",
    "a100_pairwise_nvlink": "a100_pcie",
    "a40_pairwise_nvlink": "a40",
    "h100_dgx": "h100_sxm",
    "h100_pairwise_nvlink": "h100_pcie",
}
COLLECTIVES = ("all_reduce", "send_recv")


class Network:
    """Links belong to nodes, not to GPUs: ``node`` is the folder's name, or the hosts'."""

    name = "network"
    licence = "MIT"

    def read(self, path: Path, wanted: Selection) -> Reading:
        reading = Reading(joined([]), [])
        tables = list(_vidur(path, reading))
        for file in sorted(path.glob("**/*.out")):
            reading.files.append(file)
            tables += read_log(file)
        if not tables:
            raise TraceError(
                f"{path}: neither <node>/{{{','.join(COLLECTIVES)}}}.csv nor *.out of nccl-tests"
            )
        reading.table = joined(tables)
        if wanted.gpu is not None:
            device = reading.table.column("device")
            reading.table = reading.table.filter(pc.equal(device, wanted.gpu))
        return reading


def _vidur(path: Path, reading: Reading) -> Iterator[pa.Table]:
    """The tables of each node; one that is a copy of another node's is left out."""
    seen: dict[str, Path] = {}
    for file in sorted(f for c in COLLECTIVES for f in path.glob(f"*/{c}.csv")):
        node = file.parent.name
        if node not in NODES:
            raise TraceError(f"{file}: node {node!r} is unknown{nearest(node, NODES)}")
        twin = seen.setdefault(content_hash(file), file)
        if twin is file:
            reading.files.append(file)
            yield _collectives(file, node)
        else:
            where, original = (f.relative_to(path) for f in (file, twin))
            reading.left_out.append(f"{where}: byte for byte {original}")


def _collectives(file: Path, node: str) -> pa.Table:
    stat = f"time_stats.{file.stem}"
    rows = read_csv(
        file, (f"{stat}.median", f"{stat}.std", "num_workers", "size", "devices_per_node")
    )
    columns: dict[str, Any] = {
        "operator": file.stem,
        "bytes": rows["size"],
        "ranks": rows["num_workers"],
        "nodes": -(-rows["num_workers"] // rows["devices_per_node"]),
        "duration_s": rows[f"{stat}.median"] * MS,
        "std_s": rows[f"{stat}.std"] * MS,
        "timing": "with_launch",
        "device": NODES[node],
        "node": node,
        "engine": "nccl",
        "engine_version": "unrecorded",
        "dtype": "float16",
    }
    return kernel_rows(columns, len(rows))
