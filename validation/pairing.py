"""Which requests of two bundles are compared, and what became of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from traces.bundle import Bundle
from traces.errors import TraceError
from traces.workload import WARM_UP

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Side:
    """The requests of one bundle by what became of them.

    ``unmatched`` are not in the other bundle; ``failed`` counts by status the matched ones
    that did not finish. ``requests`` counts all, warm-ups included.
    """

    requests: int
    warmups: int
    unmatched: int
    failed: dict[str, int]


@dataclass(frozen=True, slots=True)
class Pairing:
    """Requests that finished in both bundles.

    ``ids`` in the measured bundle's arrival order, ``(n_pairs,)``; ``measured`` and
    ``simulated`` are their rows in the two ``requests`` tables. ``matched`` counts ids in
    both, ``tokens_differ`` the pairs whose prompt or output lengths are not the same.
    """

    ids: pa.Array
    measured: Rows
    simulated: Rows
    matched: int
    tokens_differ: int
    sides: tuple[Side, Side]


def pair(measured: Bundle, simulated: Bundle) -> Pairing:
    """Match the two bundles' requests by id, leaving out warm-ups.

    Raises TraceError if no request finished in both.
    """
    tables = (measured.requests, simulated.requests)
    rows = tuple(_kept_rows(table) for table in tables)
    ids = tuple(_ids(t, r) for t, r in zip(tables, rows, strict=True))
    position = pc.index_in(ids[0], value_set=ids[1])
    found = pc.is_valid(position).to_numpy(zero_copy_only=False)
    here = rows[0][found]
    there = rows[1][position.drop_null().to_numpy()]
    sides = tuple(
        Side(len(t), len(t) - len(r), len(r) - len(here), _failures(t, m))
        for t, r, m in zip(tables, rows, (here, there), strict=True)
    )
    done = _finished(tables[0], here) & _finished(tables[1], there)
    if not done.any():
        what = "finished in both" if len(here) else "is in both"
        raise TraceError(
            f"{simulated.path}: no request {what} this bundle and {measured.path}; "
            "request_id pairs them"
        )
    here, there = here[done], there[done]
    differ = np.zeros(len(here), bool)
    for name in ("prompt_tokens", "output_tokens"):
        lengths = [t.column(name).to_numpy()[r] for t, r in zip(tables, (here, there), strict=True)]
        differ |= lengths[0] != lengths[1]
    return Pairing(
        _ids(tables[0], here),
        here,
        there,
        int(found.sum()),
        int(differ.sum()),
        (sides[0], sides[1]),
    )


def rows_with_ids(bundle: Bundle, ids: pa.Array) -> Rows:
    """Rows of the finished requests of ``bundle`` among ``ids``, in the order of ``ids``."""
    position = pc.index_in(ids, value_set=_ids(bundle.requests, None)).drop_null().to_numpy()
    rows = position.astype(np.int64)
    finished: Rows = rows[_finished(bundle.requests, rows)]
    return finished


def refuse_same_run(runs: Sequence[tuple[str, str]]) -> None:
    """Raise TraceError if two of the ``(name, bundle hash)`` are one run given twice.

    A run compared with itself would show a noise floor of zero.
    """
    seen: dict[str, str] = {}
    for name, digest in runs:
        if digest in seen:
            raise TraceError(
                f"--repeats {name}: the same run as {seen[digest]}, not a repeat of it"
            )
        seen[digest] = name


def _ids(table: pa.Table, rows: Rows | None) -> pa.Array:
    """Request ids of ascending ``rows``, None for all."""
    ids = table.column("request_id").combine_chunks()
    return ids if rows is None or len(rows) == len(ids) else ids.take(pa.array(rows))


def _kept_rows(table: pa.Table) -> Rows:
    warm = pc.starts_with(table.column("request_id"), WARM_UP)
    return np.flatnonzero(~warm.to_numpy(zero_copy_only=False).astype(bool))


def _finished(table: pa.Table, rows: Rows) -> npt.NDArray[np.bool_]:
    """Whether each row finished: it has a finish time, and no status says otherwise."""
    if "finished_s" not in table.column_names:
        return np.zeros(len(rows), bool)
    done = pc.is_valid(table.column("finished_s"))
    if "status" in table.column_names:
        done = pc.and_(done, pc.fill_null(pc.equal(table.column("status"), "finished"), False))
    flags: npt.NDArray[np.bool_] = done.to_numpy().astype(bool)[rows]
    return flags


def _failures(table: pa.Table, rows: Rows) -> dict[str, int]:
    rows = rows[~_finished(table, rows)]
    if "status" not in table.column_names:
        return {"unfinished": len(rows)} if len(rows) else {}
    status = pc.fill_null(table.column("status"), "unfinished").combine_chunks()
    counts = pc.value_counts(status.take(pa.array(rows))).to_pylist()
    named = {"finished": "finished at no recorded time"}
    return {
        named.get(c["values"], c["values"]): c["counts"]
        for c in sorted(counts, key=lambda c: str(c["values"]))
    }
