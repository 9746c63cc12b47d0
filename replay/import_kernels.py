"""Operator tables of others become the ``kernels.parquet`` of a profile, checked.

``kernels.yaml`` beside it says where the rows came from, by hash, and what was left out and
why. Nothing is fitted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from replay.kernel_rates import Rates, rates
from simulator.hardware import load_hardware
from traces.bundle import content_hash
from traces.check import table_faults
from traces.digest import text_digest
from traces.errors import ConfigError, TraceError
from traces.kernels import source_named
from traces.kernels.aiconfigurator import AIConfigurator
from traces.kernels.base import Reading, Selection, joined
from traces.kernels.bundle import BundleKernels
from traces.schema import KERNELS

NOTES = "kernels.yaml"
SCHEMA = 1
LISTED, SHOWN = 100, 3  # rows above a peak: in the notes, on the screen
TIMES = ("duration_s", "std_s")
GROUP = ("operator", "device", "engine", "engine_version", "timing")
# More than this of an operator's rows above the peak is no outlier: the unit is wrong.
REFUSED_SHARE = 0.5


def import_kernels(
    source: str,
    path: Path,
    out: Path,
    selection: Selection,
    *,
    add: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Read a source into ``out/kernels.parquet`` and return a table of what it gave.

    Rows above a peak of their device are refused one by one and listed; a whole operator of
    them is a TraceError, and so is anything else unsound. With ``add`` the rows join those of
    an earlier import, else a profile that holds kernels already is a ConfigError.
    """
    file = out / KERNELS.file
    if file.exists() and not add:
        raise ConfigError(f"{file}: exists; --add adds to it, or choose another --out")
    if source != AIConfigurator.name and (selection.engine or selection.version):
        raise ConfigError(f"{source} has one engine version: --engine and --version choose nothing")
    progress(f"reading {source} from {path}")
    reading = source_named(source).read(path, selection)
    reading.table = _by_sheet(reading.table)
    if source == BundleKernels.name and selection.gpu is not None:
        reading.table = reading.table.filter(pc.equal(reading.table["device"], selection.gpu))
    if not len(reading.table):
        raise TraceError(f"{path}: no row for {selection.gpu or 'this selection'}")
    _check(reading.table, str(path))
    progress(f"checking {len(reading.table)} rows against their devices")
    found = rates(reading.table)
    beyond = found.beyond()
    _refuse_units(reading.table, found, beyond, str(path))
    entry = _entry(source, path, selection, reading, found, beyond)
    earlier = _earlier(file, entry)
    kept = reading.table.filter(pa.array(~beyond))
    rows = _sorted(joined([pq.read_table(file), kept]) if earlier else kept)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, file, compression="zstd")
    _write_notes(out, [*earlier, entry], rows)
    return "\n".join([kernel_table(kept, found.only(~beyond)), *_warnings(entry)])


def _by_sheet(table: pa.Table) -> pa.Table:
    """Devices under their sheets' names: a capture names its GPU as the driver does."""
    if "device" not in table.column_names:
        return table
    at, column = table.column_names.index("device"), table.column("device")
    named = {name: _sheet(name) for name in column.unique().drop_null().to_pylist()}
    if all(name == sheet for name, sheet in named.items()):
        return table
    devices = [named.get(name) for name in column.to_pylist()]
    return table.set_column(at, "device", pa.array(devices, pa.string()))


def _sheet(device: str) -> str:
    try:
        return load_hardware(device).name
    except ConfigError:
        return device


def _check(table: pa.Table, where: str) -> None:
    faults = table_faults(KERNELS, table, where)
    if faults:
        raise TraceError(faults)
    idle = np.flatnonzero(table.column("duration_s").to_numpy() <= 0)
    if len(idle):
        raise TraceError(f"{where}: row {idle[0]}: duration_s must be above 0 ({len(idle)} rows)")


def _refuse_units(table: pa.Table, found: Rates, beyond: npt.NDArray[np.bool_], where: str) -> None:
    """Raise TraceError where most rows of an operator are above a peak."""
    faults = []
    for key, rows in _groups(table, ("operator", "device", "timing")):
        bad = rows[beyond[rows]]
        if len(bad) > REFUSED_SHARE * len(rows):
            faults.append(
                f"{where}: {len(bad)} of {len(rows)} rows of {' '.join(key)} cannot be, as row "
                f"{bad[0]}: {found.text(table, int(bad[0]))}"
            )
    if faults:
        raise TraceError(faults)


def _groups(
    table: pa.Table, names: tuple[str, ...]
) -> Iterable[tuple[tuple[str, ...], npt.NDArray[np.int64]]]:
    """Rows of each combination of the named columns, in order of the combinations."""
    keys = table.select(list(names)).append_column("row", pa.array(range(len(table))))
    grouped = keys.group_by(list(names), use_threads=False).aggregate([("row", "list")])
    by_key = {tuple(r[n] for n in names): r["row_list"] for r in grouped.to_pylist()}
    return [(key, np.asarray(by_key[key], np.int64)) for key in sorted(by_key)]


def _sorted(table: pa.Table) -> pa.Table:
    """The rows in the order of their columns, times last."""
    names = _scalars(table)
    return table.sort_by([(name, "ascending") for name in names])


def _scalars(table: pa.Table) -> list[str]:
    plain = [c.name for c in KERNELS.columns if not c.type.startswith("list")]
    present = [n for n in plain if n in table.column_names]
    return sorted(present, key=lambda n: n in TIMES)


def _same_as_before(table: pa.Table, names: list[str]) -> npt.NDArray[np.bool_]:
    """Rows whose named values all equal those of the row above."""
    same = np.ones(len(table), bool)
    same[:1] = False
    for name in names:
        values = table.column(name).combine_chunks()
        now, before = values[1:], values[:-1]
        equal = pc.fill_null(pc.equal(now, before), False)
        both_null = pc.and_(pc.is_null(now), pc.is_null(before))
        same[1:] &= pc.or_(equal, both_null).to_numpy(zero_copy_only=False)
    return same


def _entry(
    source: str,
    path: Path,
    selection: Selection,
    reading: Reading,
    found: Rates,
    beyond: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """What ``kernels.yaml`` says of one import."""
    wanted = {n: getattr(selection, n) for n in ("gpu", "engine", "version")}
    files = sorted(reading.files)
    refused = np.flatnonzero(beyond)
    return {
        "source": source,
        "licence": source_named(source).licence,
        "selection": {name: value for name, value in wanted.items() if value},
        "files": len(files),
        "hash": text_digest([[_named(f, path), content_hash(f)] for f in files]),
        "rows": int((~beyond).sum()),
        "dropped": dict(sorted(reading.dropped.items())),
        "tables_left_out": reading.left_out,
        "refused_above_peak": len(refused),
        "refused": [found.text(reading.table, int(row)) for row in refused[:LISTED]],
        "devices_without_sheet": found.unchecked,
        "remarks": reading.remarks,
    }


def _named(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _write_notes(out: Path, sources: list[dict[str, Any]], rows: pa.Table) -> None:
    repeated = _same_as_before(rows, [n for n in _scalars(rows) if n not in TIMES])
    counts = [
        {**dict(zip(GROUP, key, strict=True)), "rows": len(found)}
        for key, found in _groups(rows, GROUP)
    ]
    content = {
        "schema": SCHEMA,
        "sources": sources,
        "repeated_rows": int(repeated.sum()),
        "rows": counts,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    (out / NOTES).write_text(text)


def _earlier(file: Path, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The imports that ``file`` holds already, of which ``entry`` must be none."""
    if not file.exists():
        return []
    notes = file.parent / NOTES
    try:
        sources = list(yaml.safe_load(notes.read_text())["sources"])
    except (OSError, yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        raise TraceError(f"{notes}: not the notes of an earlier import") from None
    same = ("source", "hash", "selection")
    if any(all(e.get(key) == entry[key] for key in same) for e in sources):
        raise ConfigError(f"{file}: holds this import already")
    return sources


def kernel_table(table: pa.Table, found: Rates) -> str:
    """Operators by device and version: rows, range of durations, best share of a peak."""
    lines = [("operator", "device", "engine", "timing", "rows", "shortest", "longest", "of peak")]
    duration_us = table.column("duration_s").to_numpy() * 1e6
    for (operator, device, engine, version, timing), rows in _groups(table, GROUP):
        low, high, best = duration_us[rows].min(), duration_us[rows].max(), found.best(rows)
        numbers = (
            str(len(rows)),
            f"{low:.1f} us",
            f"{high:.0f} us",
            f"{best:.0%}" if best else "-",
        )
        lines.append((operator, device, f"{engine} {version}", timing, *numbers))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = [
        "  ".join([*map(str.ljust, line[:4], widths), *map(str.rjust, line[4:], widths[4:])])
        for line in lines
    ]
    return "\n".join([*shown, f"{len(table)} rows"])


def _warnings(entry: dict[str, Any]) -> list[str]:
    """What was not taken, in lines to print."""
    lines = [f"dropped {count} rows, {why}" for why, count in entry["dropped"].items()]
    if entry["refused_above_peak"]:
        lines.append(
            f"refused {entry['refused_above_peak']} rows, of which {NOTES} lists the first:"
        )
        lines += [f"  {text}" for text in entry["refused"][:SHOWN]]
    lines += [f"left out {name}" for name in entry["tables_left_out"]]
    if entry["devices_without_sheet"]:
        devices = ", ".join(entry["devices_without_sheet"])
        lines.append(f"rates not checked, no hardware sheet: {devices}")
    return [*lines, *entry["remarks"]]
