"""Scores of operator models: the JSON file and a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from traces.errors import ConfigError
from validation.operators import Score


def write_scores(scores: Mapping[str, Score], out: Path) -> str:
    """Write ``{family: {n, mape, ...}}``, fractions; returns the same as a table, in percent."""
    try:
        out.write_text(json.dumps({k: asdict(v) for k, v in scores.items()}, indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}") from None
    head = ("family", "n", "MAPE", "p50", "p95", "within 6", "within 10", "extrapolated", "refused")
    lines = ["  ".join(f"{h:>12}" for h in head)]
    for name, s in scores.items():
        shares = (s.mape, s.p50, s.p95, s.within_6, s.within_10, s.extrapolated)
        cells = (name[-12:], f"{s.n:,}", *(f"{100 * x:.1f} %" for x in shares), f"{s.refused:,}")
        lines.append("  ".join(f"{c:>12}" for c in cells))
    return "\n".join(lines)
