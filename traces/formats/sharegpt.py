"""ShareGPT conversations as LLMServingSim 2.0 replays them: JSON lines with prefix hashes.

github.com/casys-kaist/LLMServingSim, workloads/: arrivals in ns, hashes of 16-token blocks.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from traces.formats.base import demand_of
from traces.formats.read import read_jsonl
from traces.formats.rows import Ints, Rows
from traces.workload import Workload

BLOCK_TOKENS = 16
_HASH = re.compile(r"[0-9a-f]{1,15}")  # fits a positive int64


class ShareGPT:
    """``{"input_toks": n, "output_toks": n, "arrival_time_ns": t, "block16_hashes": [hex]}``.

    The hashes are chained and stand for the full blocks of the prompt.
    """

    name = "sharegpt"
    columns = ("input_toks", "output_toks", "arrival_time_ns")

    def read(self, path: Path) -> Workload:
        rows = read_jsonl(path, self.columns, ["block16_hashes"])
        arrival_ns = rows.ints("arrival_time_ns", minimum=0)
        rows.ordered("arrival_time_ns", arrival_ns)
        prompt = rows.ints("input_toks", minimum=0)
        output = rows.ints("output_toks", minimum=0)
        hashes = _hashes(rows, prompt)
        if hashes is None:
            notes = {"prefix hashes": "none in the file"}
            return demand_of(self.name, rows, arrival_ns / 1e9, prompt, output, notes=notes)
        return demand_of(
            self.name, rows, arrival_ns / 1e9, prompt, output,
            extra={"block_hashes": hashes}, hash_block_tokens=BLOCK_TOKENS,
        )  # fmt: skip


def _hashes(rows: Rows, prompts: Ints) -> pa.Array | None:
    """The block hashes as numbers; None where no row has any. Faults are kept in ``rows``."""
    found: list[list[int] | None] = []
    faults: dict[int, str] = {}
    for i, texts in enumerate(rows.columns["block16_hashes"]):
        found.append(None)
        if texts is None:
            continue
        if not isinstance(texts, list) or not all(
            isinstance(t, str) and _HASH.fullmatch(t) for t in texts
        ):
            faults[i] = f"block16_hashes is {rows.shown('block16_hashes', i)}: expected hex digits"
        elif len(texts) > prompts[i] // BLOCK_TOKENS:
            faults[i] = f"{len(texts)} hashes do not fit {prompts[i]} tokens in blocks of 16"
        else:
            found[-1] = [int(t, 16) for t in texts]
    rows.faults_at(faults)
    return pa.array(found, pa.list_(pa.int64())) if any(found) else None
