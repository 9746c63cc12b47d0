"""CSV files of numbers and names, with every fault by file and line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from traces.check import MAX_FAULTS_PER_COLUMN
from traces.errors import TraceError, nearest


def read_csv(
    file: Path,
    numbers: Sequence[str],
    texts: Sequence[str] = (),
    *,
    optional_numbers: Sequence[str] = (),
    optional_texts: Sequence[str] = (),
) -> pd.DataFrame:
    """The named columns: finite floats, and strings as the file has them.

    An optional column may be absent or have gaps: NaN, or an empty string. Raises TraceError
    with all faults at once.
    """
    try:
        raw = pd.read_csv(file, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise TraceError(f"{file}: not readable as CSV: {str(error).strip()}") from None
    faults = [
        f"{file}: column {name!r} is missing{nearest(name, raw.columns)}"
        for name in (*numbers, *texts)
        if name not in raw
    ]
    if not len(raw):
        faults.append(f"{file}: no row in it")
    if faults:
        raise TraceError(faults)
    absent = pd.Series([""] * len(raw))
    columns: dict[str, Any] = {
        name: raw.get(name, absent).to_numpy(object) for name in (*texts, *optional_texts)
    }
    for name in (*numbers, *optional_numbers):
        text = raw.get(name, absent)
        values = pd.to_numeric(text, errors="coerce").to_numpy(float)
        gap = (text == "").to_numpy(bool) & (name in optional_numbers)
        bad = np.flatnonzero(~np.isfinite(values) & ~gap)
        faults += [
            # line 1 is the header
            f"{file}:{row + 2}: {name} is {text.iloc[row]!r}: expected a number"
            for row in bad[:MAX_FAULTS_PER_COLUMN]
        ]
        columns[name] = values
    if faults:
        raise TraceError(faults)
    return pd.DataFrame(columns)
