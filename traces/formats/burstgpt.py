"""BurstGPT CSV: two months of ChatGPT and GPT-4 use, in seconds and tokens.

github.com/HPMLL/BurstGPT: Timestamp is seconds since the first midnight; a request without
response tokens failed; files of 2025 add Session ID and Elapsed time.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from traces.formats.base import demand_of, servable
from traces.formats.read import read_csv
from traces.formats.rows import Mask
from traces.workload import Workload


class BurstGPT:
    """``Timestamp,[Session ID,][Elapsed time,]Model,Request tokens,Response tokens,...``.

    All models' requests are kept, and counted in the notes by model.
    """

    name = "burstgpt"
    columns = ("Timestamp", "Model", "Request tokens", "Response tokens")

    def read(self, path: Path) -> Workload:
        rows = read_csv(path, self.columns, ["Session ID"])
        arrival_s = rows.floats("Timestamp", minimum=0)
        rows.ordered("Timestamp", arrival_s)
        prompt = rows.ints("Request tokens", minimum=0)
        output = rows.ints("Response tokens", minimum=0)
        kept, _ = servable(prompt, output)
        extra = {}
        if "Session ID" in rows.columns:
            session = pc.utf8_trim_whitespace(rows.columns["Session ID"])
            session = pc.if_else(pc.equal(session, ""), None, session)
            extra = {"session_id": session, "turn": _turns(session, kept)}
        models = pc.value_counts(pa.array(rows.columns["Model"]).filter(pa.array(kept)))
        notes = {"requests by model": {m["values"]: m["counts"] for m in models.to_pylist()}}
        return demand_of(self.name, rows, arrival_s, prompt, output, extra=extra, notes=notes)


def _turns(session: pa.Array, kept: Mask) -> pa.Array:
    """Position of each kept row among the kept rows of its session, null outside sessions."""
    counts: dict[str | None, int] = {}
    turns = []
    for key, is_kept in zip(session.to_pylist(), kept.tolist(), strict=True):
        turns.append(counts.get(key, 0))
        counts[key] = turns[-1] + is_kept
    return pc.if_else(pc.is_valid(session), pa.array(turns, pa.int64()), None)
