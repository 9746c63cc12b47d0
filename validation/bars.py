"""Bars: how large an error may be before a validation fails.

    ttft: {mean: 0.05, p50: 0.08, p99: 0.15, ks: 0.1}
    e2e: {mean: 0.05}
    noise_multiple: 2

A statistic fails when abs(error) exceeds both its bar and ``noise_multiple`` noise floors
(2 unless given); a distance when it exceeds its bar; either when it was not compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from traces.errors import ConfigError, nearest
from validation.compared import COMPARED, metric_named
from validation.errors import DISTANCES, STATISTICS
from validation.scorecard import Scorecard

NOISE_MULTIPLE = 2.0


@dataclass(frozen=True, slots=True)
class Bars:
    """``limits`` maps (metric, statistic) to the largest allowed fraction (or distance)."""

    limits: dict[tuple[str, str], float]
    noise_multiple: float = NOISE_MULTIPLE


@dataclass(frozen=True, slots=True)
class Judgement:
    """One bar held against the scorecard: ``error`` signed, ``allowed`` what it may reach."""

    metric: str
    statistic: str
    bar: float
    allowed: float
    error: float | None
    passed: bool
    reason: str


def load_bars(path: Path) -> Bars:
    """Read a bars file. Raises ConfigError with one line naming the key."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected metrics and their bars, got {type(raw).__name__}")
    multiple = _number(path, "noise_multiple", raw.pop("noise_multiple", NOISE_MULTIPLE))
    limits: dict[tuple[str, str], float] = {}
    for metric, bars in raw.items():
        try:
            metric_named(str(metric))
        except KeyError:
            known = [*COMPARED, "noise_multiple"]
            hint = nearest(str(metric), known)
            raise ConfigError(f"{path}: unknown metric {metric!r}{hint}") from None
        limits |= _metric_limits(path, metric, bars)
    return Bars(limits, multiple)


def _metric_limits(path: Path, metric: str, bars: Any) -> dict[tuple[str, str], float]:
    if not isinstance(bars, Mapping):
        raise ConfigError(f"{path}: {metric}: expected statistics, e.g. {{mean: 0.05}}")
    known = STATISTICS + DISTANCES
    for name in bars:
        if name not in known:
            hint = nearest(str(name), known)
            raise ConfigError(f"{path}: {metric}: unknown statistic {name!r}{hint}")
    return {(metric, name): _number(path, f"{metric}.{name}", v) for name, v in bars.items()}


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{path}: {key}: must be a number, got {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"{path}: {key}: must be a number >= 0, got {value!r}")
    return float(value)


def judge(scorecard: Scorecard, bars: Bars) -> list[Judgement]:
    """Hold every bar against the scorecard, in the order of the bars."""
    return [_judge_one(scorecard, bars, *key, limit) for key, limit in bars.limits.items()]


def _judge_one(
    scorecard: Scorecard, bars: Bars, metric: str, statistic: str, bar: float
) -> Judgement:
    errors = scorecard.metrics.get(metric)
    if errors is None:
        why = scorecard.coverage["metrics_missing"].get(metric, "not compared")
        return Judgement(metric, statistic, bar, bar, None, False, f"not compared: {why}")
    allowed = bar
    if statistic in DISTANCES:
        error = errors.distances.get(statistic)
    else:
        found = errors.statistics.get(statistic)
        error = found.error if found else None
        if found and found.noise is not None:
            allowed = max(bar, bars.noise_multiple * found.noise)
    if error is None:
        return Judgement(metric, statistic, bar, allowed, None, False, "the error is undefined")
    passed = abs(error) <= allowed
    fraction = statistic not in DISTANCES or statistic == "paired_mape"
    size, limit, asked = (
        f"{x * 100:.3g} %" if fraction else f"{x:.4g}" for x in (abs(error), allowed, bar)
    )
    reason = f"{size} {'low' if error < 0 else 'high'}" if statistic not in DISTANCES else size
    reason += f", {limit} allowed"
    if allowed > bar:
        reason += f": {bars.noise_multiple:g} times the noise, the bar is {asked}"
    return Judgement(metric, statistic, bar, allowed, error, passed, reason)
