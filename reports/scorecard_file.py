"""``scorecard.json``: the scorecard as versioned data, written and read back.

One key a statistic (mean, p50, ...) with measured, simulated, error, ci, noise; beside them
the distances with their unit in the name (``wasserstein_s``), and under ``floor`` the same
distances between runs of the real system.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from traces.errors import TraceError, nearest
from validation.compared import COMPARED, Metric, metric_named
from validation.errors import STATISTICS
from validation.scorecard import SCHEMA_VERSION, MetricErrors, Scorecard, Statistic

FILE = "scorecard.json"
_WITH_UNIT = ("wasserstein", "paired_mae")


def to_data(scorecard: Scorecard) -> dict[str, Any]:
    """The scorecard as plain data, ready for JSON; keys in a fixed order."""
    data = {
        "schema": SCHEMA_VERSION,
        "metrics": {name: _metric_data(m) for name, m in scorecard.metrics.items()},
        "coverage": scorecard.coverage,
        "provenance": scorecard.provenance,
    }
    return data | ({"ladder": scorecard.ladder} if scorecard.ladder else {})


def write_scorecard(scorecard: Scorecard, path: Path) -> None:
    """Write ``path``; the same bytes for the same scorecard."""
    text = json.dumps(to_data(scorecard), indent=1, allow_nan=False)
    path.write_text(text + "\n")


def read_scorecard(path: Path) -> Scorecard:
    """Read a ``scorecard.json``, or the one in a directory. Raises TraceError."""
    path = path / FILE if path.is_dir() else path
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise TraceError(f"{path}: not a scorecard")
    if raw.get("schema") != SCHEMA_VERSION:
        raise TraceError(
            f"{path}: schema is {raw.get('schema')!r}, this version reads {SCHEMA_VERSION}"
        )
    for key in ("metrics", "coverage", "provenance"):
        if not isinstance(raw.get(key), dict):
            raise TraceError(f"{path}: {key} is missing")
    metrics = {}
    for name, data in raw["metrics"].items():
        try:
            metric = metric_named(name)
        except KeyError:
            raise TraceError(f"{path}: unknown metric {name!r}{nearest(name, COMPARED)}") from None
        try:
            metrics[name] = _metric(metric, data)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise TraceError(f"{path}: metrics.{name}: {error}") from None
    return Scorecard(metrics, raw["coverage"], raw["provenance"], raw.get("ladder", {}))


def refuse_incomparable(
    one: Scorecard, other: Scorecard, names: tuple[Path, Path], hint: str = ""
) -> None:
    """Raise TraceError naming what two scorecards do not have in common, and ``hint``."""
    for what, get in (
        ("workload", lambda p: p["workload_hash"]),
        ("measured deployment", lambda p: p["measured"]["deployment_hash"]),
        ("vantage", lambda p: (p["measured"]["vantage"], p["simulated"]["vantage"])),
        ("comparison", lambda p: p["comparison"]),
    ):
        try:
            here, there = get(one.provenance), get(other.provenance)
        except (KeyError, TypeError):
            raise TraceError(
                f"{names[0]}, {names[1]}: no {what} recorded: not comparable"
            ) from None
        if here != there:
            raise TraceError(f"{names[0]}: another {what} than {names[1]}: not comparable{hint}")


def distance_key(name: str, metric: Metric) -> str:
    """Name of a distance in the file: with its unit where it has one."""
    return f"{name}_{metric.unit}" if name in _WITH_UNIT else name


def _metric_data(errors: MetricErrors) -> dict[str, Any]:
    metric = errors.metric
    return {
        **{name: asdict(statistic) for name, statistic in errors.statistics.items()},
        **{distance_key(n, metric): v for n, v in errors.distances.items()},
        "floor": {distance_key(n, metric): v for n, v in errors.floor.items()},
        "unit": metric.unit,
        "formula": metric.formula,
        "values": errors.values,
        "interval": errors.interval,
    }


def _metric(metric: Metric, data: Mapping[str, Any]) -> MetricErrors:
    plain = {distance_key(n, metric): n for n in ("ks", "paired_mape", *_WITH_UNIT)}
    return MetricErrors(
        metric,
        {name: _statistic(name, data[name]) for name in STATISTICS if name in data},
        {plain[k]: float(v) for k, v in data.items() if k in plain},
        {plain[k]: float(v) for k, v in data.get("floor", {}).items() if k in plain},
        dict(data.get("values", {})),
        str(data.get("interval", "")),
    )


def _statistic(name: str, data: Mapping[str, Any]) -> Statistic:
    known = {f.name for f in fields(Statistic)}
    values: dict[str, Any] = {key: data.get(key) for key in known}
    for key in ("measured", "simulated"):
        values[key] = float(data[key])
    for key in ("error", "noise", "detectable"):
        if values[key] is not None:
            values[key] = float(data[key])
    if values["ci"] is not None:
        low, high = data["ci"]
        values["ci"] = (low, high)
    return Statistic(**values)
