"""Validation of one table against its declaration: every fault at once, with file, row, column."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.errors import nearest
from traces.schema import TYPES, Column, Table

MAX_FAULTS_PER_COLUMN = 3


def table_faults(table: Table, data: pa.Table, file: str) -> list[str]:
    """Return the faults of ``data`` as ``file: row R, column C: what`` lines; empty if sound."""
    faults = [*_column_name_faults(table, data, file)]
    sound: set[str] = set()
    for name in data.column_names:
        column = table.by_name.get(name)
        if column is None:
            continue
        found = list(_column_faults(column, data.column(name), file))
        faults += found
        if not found:
            sound.add(name)
    if faults:
        return faults
    for early, late in table.ordered:
        if early in sound and late in sound:
            faults += _order_faults(data, early, late, file)
    if table.key and all(k in sound for k in table.key):
        faults += _key_faults(data, table.key, file)
    rising = [name for name in table.monotonic if name in sound]
    if rising and all(g in sound for g in table.group):
        faults += _monotonic_faults(data, table.group, rising, file)
    return faults


def _column_name_faults(table: Table, data: pa.Table, file: str) -> Iterator[str]:
    for column in table.columns:
        if column.required and column.name not in data.column_names:
            yield f"{file}: column {column.name!r} is missing"
    for name in data.column_names:
        if name not in table.by_name:
            yield f"{file}: unknown column {name!r}{nearest(name, table.by_name)}"


def _column_faults(column: Column, values: pa.ChunkedArray, file: str) -> Iterator[str]:
    where = f"column {column.name!r}"
    try:
        values = values.cast(TYPES[column.type])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        yield f"{file}: {where}: expected {column.type}, got {values.type}"
        return
    if column.required and values.null_count:
        yield from _rows(file, where, pc.is_null(values).to_numpy(), "is empty")
    if column.choices:
        known = pc.or_kleene(pc.is_in(values, pa.array(column.choices)), pc.is_null(values))
        bad = ~known.to_numpy(zero_copy_only=False).astype(bool)
        if bad.any():
            text = nearest(str(values[int(bad.argmax())]), column.choices)
            yield from _rows(file, where, bad, f"is unknown{text}")
    if column.type.startswith("list["):
        flat = pc.list_flatten(values)
        parents = pc.list_parent_indices(values).to_numpy()
        if len(bad := _bad_numbers(column, flat)):
            rows = np.zeros(len(values), bool)
            rows[parents[bad]] = True
            yield from _rows(file, where, rows, f"holds what is not a number{_at_least(column)}")
        elif column.type == "list[float]" and column.unit == "s":
            back = (np.diff(flat.to_numpy()) < 0) & (np.diff(parents) == 0)
            rows = np.zeros(len(values), bool)
            rows[parents[1:][back]] = True
            yield from _rows(file, where, rows, "goes backwards")
    elif column.type in ("int", "float") and len(bad := _bad_numbers(column, values)):
        for row in bad[:MAX_FAULTS_PER_COLUMN]:
            value = values[int(row)].as_py()
            yield f"{file}: row {row}, {where} is {value}: must be a number{_at_least(column)}"
        if len(bad) > MAX_FAULTS_PER_COLUMN:
            yield f"{file}: {where}: {len(bad) - MAX_FAULTS_PER_COLUMN} more rows like these"


def _at_least(column: Column) -> str:
    return "" if column.minimum is None else f" >= {column.minimum:g}"


def _bad_numbers(column: Column, values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    if len(values) == 0:
        return np.empty(0, np.int64)
    missing = pc.is_null(values).to_numpy(zero_copy_only=False)
    if column.type in ("int", "list[int]"):
        numbers = pc.fill_null(values, column.minimum or 0).to_numpy(zero_copy_only=False)
        bad = np.zeros(len(numbers), bool)
    else:
        numbers = pc.fill_null(values, column.minimum or 0.0).to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(numbers)
    if column.minimum is not None:
        bad |= numbers < column.minimum
    return np.flatnonzero(bad & ~missing)


def _rows(file: str, where: str, bad: np.ndarray, what: str) -> Iterator[str]:
    rows = np.flatnonzero(np.asarray(bad, bool))
    for row in rows[:MAX_FAULTS_PER_COLUMN]:
        yield f"{file}: row {row}, {where} {what}"
    if len(rows) > MAX_FAULTS_PER_COLUMN:
        yield f"{file}: {where}: {len(rows) - MAX_FAULTS_PER_COLUMN} more rows like these"


def _order_faults(data: pa.Table, early: str, late: str, file: str) -> list[str]:
    a, b = (data.column(n).cast(pa.float64()).to_numpy(zero_copy_only=False) for n in (early, late))
    with np.errstate(invalid="ignore"):
        bad = b < a
    return list(_rows(file, f"column {late!r}", bad, f"is before {early!r}"))


def _key_faults(data: pa.Table, key: tuple[str, ...], file: str) -> list[str]:
    if len(pc.unique(_codes(data, key))) == len(data):
        return []
    groups = data.select(list(key)).group_by(list(key)).aggregate([([], "count_all")])
    twice = groups.filter(pc.greater(groups.column("count_all"), 1))
    return [
        f"{file}: {' '.join(f'{k}={row[k]!r}' for k in key)} appears {row['count_all']} times"
        for row in twice.slice(0, MAX_FAULTS_PER_COLUMN).to_pylist()
    ]


def _codes(data: pa.Table, names: tuple[str, ...]) -> pa.Array:
    """A value a row that is equal where all columns of ``names`` are."""
    if len(names) == 1:
        return data.column(names[0]).combine_chunks()
    codes = np.zeros(len(data), np.int64)
    for name in names:
        found = data.column(name).combine_chunks().dictionary_encode()
        codes = codes * len(found.dictionary) + found.indices.to_numpy()
    return pa.array(codes)


def _monotonic_faults(
    data: pa.Table, group: tuple[str, ...], names: list[str], file: str
) -> Iterator[str]:
    ids = _codes(data, group).to_numpy() if group else np.zeros(len(data), np.int64)
    order = None if (np.diff(ids) >= 0).all() else np.argsort(ids, kind="stable")
    same = np.diff(ids if order is None else ids[order]) == 0
    for name in names:
        values = data.column(name).to_numpy()
        values = values if order is None else values[order]
        bad = np.zeros(len(data), bool)
        bad[1:] = same & (np.diff(values) < 0)
        if order is not None:
            bad[order] = bad.copy()
        yield from _rows(file, f"column {name!r}", bad, "goes backwards")
