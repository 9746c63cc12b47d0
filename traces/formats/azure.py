"""Azure LLM inference traces (2023, 2024): CSV of wall-clock arrivals and lengths.

github.com/Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md and ...2024.md.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from traces.formats.base import demand_of
from traces.formats.read import read_csv
from traces.formats.rows import Ints, Rows
from traces.workload import Workload

_NS_PER_S = 1_000_000_000
# 2023: 2023-11-16 18:15:46.6805900, 2024: 2024-05-10 00:00:00.009930+00:00
_TIMESTAMP = (
    r"^\s*(?P<second>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?"
    r"(?:Z|[+-]00:?00)?\s*$"
)


class Azure:
    """``TIMESTAMP,ContextTokens,GeneratedTokens``; the first arrival becomes time zero."""

    name = "azure"
    columns = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

    def read(self, path: Path) -> Workload:
        rows = read_csv(path, self.columns)
        epoch_ns = _epoch_ns(rows)
        rows.ordered("TIMESTAMP", epoch_ns)
        prompt = rows.ints("ContextTokens", minimum=0)
        output = rows.ints("GeneratedTokens", minimum=0)
        arrival_s = (epoch_ns - epoch_ns[:1]) / _NS_PER_S
        return demand_of(self.name, rows, arrival_s, prompt, output)


def _epoch_ns(rows: Rows) -> Ints:
    """Nanoseconds since 1970; of a fault those of the row before, so that it is told once."""
    parts = pc.extract_regex(rows.columns["TIMESTAMP"], _TIMESTAMP)
    second, fraction = (pc.struct_field(parts, name) for name in ("second", "fraction"))
    second = pc.replace_substring(second, "T", " ")
    whole = pc.strptime(second, "%Y-%m-%d %H:%M:%S", "s", error_is_null=True).cast(pa.int64())
    bad = pc.is_null(whole).to_numpy(zero_copy_only=False)
    rows.fault_rows(
        bad, lambda i: f"TIMESTAMP is {rows.shown('TIMESTAMP', i)}: expected a date and time in UTC"
    )
    digits = pc.utf8_rpad(pc.fill_null(fraction, ""), 9, "0")
    found: Ints = pc.fill_null(whole, 0).to_numpy() * _NS_PER_S + digits.cast(pa.int64()).to_numpy()
    last_good = np.maximum.accumulate(np.where(bad, 0, np.arange(len(rows))))
    return found[last_good]
