"""Mooncake JSON lines: arrivals in ms, lengths, and ids of the prompt's 512-token blocks."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from traces.errors import TraceError
from traces.formats.base import demand_of, left_out
from traces.formats.read import read_jsonl
from traces.formats.rows import Rows
from traces.formats.text import write_text
from traces.workload import Workload

BLOCK_TOKENS = 512


class Mooncake:
    """``{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [id, ...]}``.

    An id stands for a block *and* all before it. The last id of a prompt that does not end
    on a block boundary names a partial block, which no cache can share: it is left out.
    """

    name = "mooncake"
    columns = ("timestamp", "input_length", "output_length")

    def read(self, path: Path) -> Workload:
        rows = read_jsonl(path, self.columns, ["hash_ids"])
        arrival_ms = rows.floats("timestamp", minimum=0)
        rows.ordered("timestamp", arrival_ms)
        prompt = rows.ints("input_length", minimum=0)
        output = rows.ints("output_length", minimum=0)
        hashes = _full_blocks(rows, prompt)
        if all(h is None for h in hashes):
            notes = {"prefix hashes": "none in the file"}
            return demand_of(self.name, rows, arrival_ms / 1e3, prompt, output, notes=notes)
        extra = {"block_hashes": pa.array(hashes, pa.list_(pa.int64()))}
        return demand_of(
            self.name, rows, arrival_ms / 1e3, prompt, output,
            extra=extra, hash_block_tokens=BLOCK_TOKENS,
        )  # fmt: skip

    def write(self, workload: Workload, path: Path) -> dict[str, Any]:
        """Write; returns what was lost. Raises TraceError if the blocks cannot become 512s."""
        table = workload.requests
        arrival_ms = np.rint(table.column("arrival_s").to_numpy() * 1e3).astype(np.int64)
        prompts = table.column("prompt_tokens").to_pylist()
        outputs = table.column("output_tokens").to_pylist()
        ids = _ids(_at_512(workload), prompts)
        lines = [
            json.dumps({"timestamp": t, "input_length": p, "output_length": o, "hash_ids": h})
            for t, p, o, h in zip(arrival_ms.tolist(), prompts, outputs, ids, strict=True)
        ]
        write_text(path, "\n".join(lines) + "\n")
        written = ("arrival_s", "prompt_tokens", "output_tokens", "block_hashes")
        return {"arrivals rounded to": "1 ms", **left_out(workload, written)}


def _full_blocks(rows: Rows, prompts: np.ndarray) -> list[list[int] | None]:
    kept: list[list[int] | None] = []
    bad: dict[int, str] = {}
    for i, ids in enumerate(rows.columns["hash_ids"]):
        full = int(prompts[i]) // BLOCK_TOKENS
        if ids is None:
            kept.append(None)
            continue
        if not isinstance(ids, list) or any(type(x) is not int or abs(x) >= 1 << 63 for x in ids):
            bad[i] = f"hash_ids is {rows.shown('hash_ids', i)}: expected whole numbers"
        elif prompts[i] > 0 and not full <= len(ids) <= -(-int(prompts[i]) // BLOCK_TOKENS):
            bad[i] = f"{len(ids)} hash_ids do not fit {prompts[i]} tokens in blocks of 512"
        kept.append(None if i in bad else ids[:full])
    rows.faults_at(bad)
    return kept


def _at_512(workload: Workload) -> list[list[int]]:
    given, table = workload.hash_block_tokens, workload.requests
    if given is None or "block_hashes" not in table.column_names:
        return [[] for _ in range(len(table))]
    if BLOCK_TOKENS % given:
        raise TraceError(f"{workload.source}: hash blocks of {given} tokens do not divide 512")
    ratio = BLOCK_TOKENS // given
    # chained: the last small block of a large one stands for it
    return [(h or [])[ratio - 1 :: ratio] for h in table.column("block_hashes").to_pylist()]


def _ids(hashes: list[list[int]], prompts: list[int]) -> list[list[int]]:
    """Small numbers in order of first sight; blocks without a hash get one of their own."""
    seen: dict[int, int] = {}
    fresh = count()
    result = []
    for known, prompt in zip(hashes, prompts, strict=True):
        row = []
        for h in known[: prompt // BLOCK_TOKENS]:
            if h not in seen:
                seen[h] = next(fresh)
            row.append(seen[h])
        row += [next(fresh) for _ in range(len(row), -(-prompt // BLOCK_TOKENS))]
        result.append(row)
    return result
