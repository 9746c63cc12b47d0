"""Splitwise and Vidur CSV: arrivals in seconds and lengths.

github.com/microsoft/vidur, data/processed_traces.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from traces.formats.base import demand_of, left_out
from traces.formats.read import read_csv
from traces.formats.text import write_text
from traces.workload import Workload


class Vidur:
    """``arrived_at,num_prefill_tokens,num_decode_tokens``; other columns are not read."""

    name = "vidur"
    columns = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")

    def read(self, path: Path) -> Workload:
        rows = read_csv(path, self.columns)
        arrival_s = rows.floats("arrived_at", minimum=0)
        rows.ordered("arrived_at", arrival_s)
        prompt = rows.ints("num_prefill_tokens", minimum=0)
        output = rows.ints("num_decode_tokens", minimum=0)
        return demand_of(self.name, rows, arrival_s, prompt, output)

    def write(self, workload: Workload, path: Path) -> dict[str, Any]:
        """Write; returns what was lost. Times keep every digit."""
        names = ("arrival_s", "prompt_tokens", "output_tokens")
        values = zip(*(workload.requests.column(n).to_pylist() for n in names), strict=True)
        lines = [",".join(self.columns), *(",".join(map(repr, row)) for row in values)]
        write_text(path, "\n".join(lines) + "\n")
        return left_out(workload, names)
