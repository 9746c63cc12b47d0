"""aiconfigurator-core: NVIDIA's measured kernel tables of ten GPUs (PyPI, Apache-2.0).

``systems/data/<system>/<family>/<engine>/<version>/<table>_perf.parquet``, in a wheel, an
unpacked directory or the installed package. Milliseconds, averaged over CUDA-graph replays;
the all-to-all tables are microseconds. A folder of one version may hold rows copied from
another version, engine or GPU: each row says what it was measured on, and the folder is
believed only where the row is silent.
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from traces.errors import ConfigError, TraceError, nearest
from traces.kernels.aiconfigurator_tables import MAPPERS
from traces.kernels.base import Reading, Selection, joined, kernel_rows

PACKAGE = "aiconfigurator_core"
INSTALLED = "installed"
ENGINES = ("vllm", "sglang", "trtllm")
COLLECTIVE_LIBRARIES = ("nccl", "oneccl")  # folders beside the engines', wanted with each

SYSTEMS = {  # folder -> hardware sheet, and what the device's own name must contain
    "a100_sxm": ("a100_sxm_80gb", "A100"),
    "b200_sxm": ("b200_sxm", "B200"),
    "b300_sxm": ("b300_sxm", "B300"),
    "b60": ("b60", "Intel"),
    "gb200": ("gb200", "GB200"),
    "gb300": ("gb300", "GB300"),
    "h100_sxm": ("h100_sxm", "H100"),
    "h200_sxm": ("h200_sxm", "H200"),
    "l40s": ("l40s", "L40S"),
    "rtx_pro_6000_server": ("rtx_pro_6000", "RTX PRO 6000"),
}


class AIConfigurator:
    """All tables of a GPU and engine; by default of every GPU, vLLM, each table's newest.

    ``num_heads`` counts the heads on the device; ``inter_size`` is one expert's before tensor
    parallelism; MoE tokens are those of all expert-parallel ranks; a collective's
    ``message_size`` counts elements of the larger buffer, as nccl-tests do. Under a power law
    the expert-parallel rank timed is the fullest one.
    """

    name = "aiconfigurator"
    licence = "Apache-2.0"

    def read(self, path: Path, wanted: Selection) -> Reading:
        engine = wanted.engine or "vllm"
        if engine not in ENGINES:
            raise ConfigError(f"{self.name} has no engine {engine!r}{nearest(engine, ENGINES)}")
        data, origin = _data_directory(path)
        reading = Reading(joined([]), [origin] if origin.is_file() else [])
        tables = []
        systems, version = _systems(data, wanted.gpu), wanted.version or "latest"
        known = {"latest", "all", *(v for s in systems for v in _versions(s, engine))}
        if version not in known:
            raise ConfigError(f"{self.name} has no {engine} {version}{nearest(version, known)}")
        for system in systems:
            for folder, file in _files(system, engine, version):
                where = f"{system.name}/{folder}/{file.name}"
                mapper = MAPPERS.get(file.name.removesuffix("_perf.parquet"))
                if mapper is None:
                    reading.left_out.append(where)
                    continue
                rows = _own_rows(_frame(file), system.name, engine, folder, reading.dropped)
                try:
                    found = [_stamped(c, rows, system.name) for c in mapper(rows)]
                except KeyError as error:
                    raise TraceError(f"{file}: column {error.args[0]!r} is missing") from None
                tables += found
                reading.remarks += _host_bound_remarks(where, found)
                if not origin.is_file():
                    reading.files.append(Path(str(file)))
        if not tables:
            raise TraceError(f"{path}: no kernel table for {engine} {version}")
        reading.table = joined(tables)
        return reading


def _data_directory(path: Path) -> tuple[Traversable, Path]:
    """The folder of the systems, and the path whose content it is (the wheel, or itself)."""
    if str(path) == INSTALLED:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"{PACKAGE} is not installed: pip install 'frontier-replay[kernels]'")
        path = Path(spec.submodule_search_locations[0])
    if not path.exists():
        raise TraceError(f"{path}: no such file or directory")
    root: Traversable = path
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise TraceError(f"{path}: neither a directory nor a wheel")
        root = zipfile.Path(path)
    for inner in ("", "data", "systems/data", f"{PACKAGE}/systems/data"):
        found = root.joinpath(inner) if inner else root
        if found.is_dir() and any(child.name in SYSTEMS for child in found.iterdir()):
            return found, path
    raise TraceError(f"{path}: no kernel tables of aiconfigurator-core in it")


def _systems(data: Traversable, gpu: str | None) -> list[Traversable]:
    known = {SYSTEMS[d.name][0]: d for d in data.iterdir() if d.name in SYSTEMS}
    if gpu is None:
        return [known[sheet] for sheet in sorted(known)]
    if gpu not in known:
        raise ConfigError(f"aiconfigurator has no GPU {gpu!r}{nearest(gpu, known)}")
    return [known[gpu]]


def _versions(system: Traversable, engine: str) -> list[str]:
    owners = [owner for family in _folders(system) for owner in _folders(family)]
    return [v.name for owner in owners if owner.name == engine for v in _folders(owner)]


def _files(system: Traversable, engine: str, version: str) -> Iterator[tuple[str, Traversable]]:
    """The wanted parquet files of a system with their folder below it, in a fixed order.

    ``latest`` takes of each table its newest version; the collectives' libraries have versions
    of their own, so an engine's version does not select among them.
    """
    for family in _folders(system):
        for owner in _folders(family):
            if owner.name not in (engine, *COLLECTIVE_LIBRARIES):
                continue
            chosen = version if owner.name == engine or version == "all" else "latest"
            newest: dict[str, tuple[str, Traversable]] = {}
            for folder in sorted(_folders(owner), key=lambda f: _version_key(f.name)):
                where = f"{family.name}/{owner.name}/{folder.name}"
                for file in sorted(folder.iterdir(), key=lambda f: f.name):
                    if not file.name.endswith(".parquet"):
                        continue
                    if chosen == "latest":
                        newest[file.name] = (where, file)
                    elif chosen in ("all", folder.name):
                        yield where, file
            yield from newest.values()


def _folders(parent: Traversable) -> list[Traversable]:
    return sorted((c for c in parent.iterdir() if c.is_dir()), key=lambda c: c.name)


def _version_key(version: str) -> tuple[int, ...]:
    """Order of versions by their numbers: 0.9.0 before 0.14.0, rc5 before rc20."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _frame(file: Traversable) -> pd.DataFrame:
    try:
        table: pd.DataFrame = pq.read_table(pa.BufferReader(file.read_bytes())).to_pandas()
    except (pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0]
        raise TraceError(f"{file}: not readable as parquet: {what}") from None
    return table


def _own_rows(
    rows: pd.DataFrame, system: str, engine: str, folder: str, dropped: Counter[str]
) -> pd.DataFrame:
    """The rows measured on this GPU and engine, with ``owner`` and ``version`` filled in."""
    _, owner, version = folder.split("/")
    rows = rows.copy()
    if "version" not in rows:
        rows["version"] = version
    if owner in COLLECTIVE_LIBRARIES:
        rows["owner"] = owner
    else:
        rows["owner"] = rows["framework"].str.lower() if "framework" in rows else owner
    foreign = {"engine": np.zeros(len(rows), bool), "GPU": np.zeros(len(rows), bool)}
    if owner == engine:
        foreign["engine"] = (rows["owner"] != engine).to_numpy(bool)
    if "device" in rows:
        foreign["GPU"] = ~rows["device"].str.contains(rf"\b{SYSTEMS[system][1]}\b").to_numpy(bool)
    for what, other in foreign.items():
        if other.any():
            dropped[f"{system}/{folder}: measured on another {what}"] += int(other.sum())
    return rows[~(foreign["engine"] | foreign["GPU"])]


def _host_bound_remarks(where: str, tables: list[pa.Table]) -> list[str]:
    """The kernels of a GEMM table whose times are those of their launch."""
    remarks = []
    for table in tables:
        launched = table.filter(pc.equal(table["timing"], "with_launch"))
        if len(launched) and launched["operator"][0].as_py() == "linear":
            kernels = ", ".join(sorted(launched["backend"].unique().to_pylist()))
            remarks.append(f"{where}: launches bound {len(launched)} rows, those of {kernels}")
    return remarks


def _stamped(columns: dict[str, object], rows: pd.DataFrame, system: str) -> pa.Table:
    """The ``KERNELS`` rows of mapped columns, with what all tables have in common."""
    common = {
        "timing": "kernel",
        "device": SYSTEMS[system][0],
        # the machines are unnamed: the label only keeps their links apart from other nodes'
        "node": f"aiconfigurator-{system}" if "ranks" in columns else None,
        "engine": rows["owner"],
        "engine_version": rows["version"],
        "backend": rows["kernel_source"],
    }
    return kernel_rows({**common, **columns}, len(rows))
