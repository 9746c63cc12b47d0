"""The sweep file: what is varied, what must hold, what is best. YAML, checked key by key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from traces.errors import ConfigError, nearest

SLO_METRICS = ("ttft", "tpot", "e2e", "queue")
STATISTIC = re.compile(r"mean|p(\d{1,2}(\.\d+)?)")
# name -> (label, unit, whether more is better)
OBJECTIVES: dict[str, tuple[str, str, bool]] = {
    "goodput": ("goodput", "requests/s", True),
    "goodput_per_gpu": ("goodput per GPU", "requests/s", True),
    "tokens_per_s": ("output tokens/s", "tokens/s", True),
    "tokens_per_s_per_gpu": ("output tokens/s per GPU", "tokens/s", True),
    "cost_per_hour": ("cost per hour", "", False),
    "cost_per_million_tokens": ("cost per million output tokens", "", False),
    "gpus": ("GPUs", "", False),
    "capacity": ("capacity", "requests/s", True),
    "capacity_per_gpu": ("capacity per GPU", "requests/s", True),
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Range(_Strict):
    """All numbers from ``low`` to ``high``; whole ones if both are. For samples and searches."""

    low: float | int = Field(alias="from")
    high: float | int = Field(alias="to")
    log: bool = False

    @model_validator(mode="after")
    def _ascends(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("'from' must be below 'to', and above 0 under log")
        return self

    @property
    def whole(self) -> bool:
        """Whether only integers are meant."""
        return isinstance(self.low, int) and isinstance(self.high, int)


class Sample(_Strict):
    """So many points drawn at random instead of the whole grid."""

    points: int = Field(ge=1)
    seed: int = 0


class Search(_Strict):
    """So many points, each batch chosen by what the batches before it gave."""

    points: int = Field(ge=1)
    seed: int = 0
    batch: int = Field(8, ge=1)


class Capacity(_Strict):
    """The rate scales between which the highest that meets the SLOs is looked for.

    The interval found is at most ``tolerance`` wide, as a fraction of its lower end; the
    first ``warmup`` of the requests are not judged.
    """

    low: float = Field(1 / 64, gt=0)
    high: float = Field(64.0, gt=0)
    tolerance: float = Field(0.02, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1)


class Constraints(_Strict):
    """The most a deployment may take; one that takes more is infeasible."""

    gpus: int | None = Field(None, ge=1)
    cost_per_hour: float | None = Field(None, gt=0)
    memory_gb: float | None = Field(None, gt=0)


Grid = dict[str, Any]


class Sweep(_Strict):
    """Content of a sweep file.

    ``axes`` are a grid or several, their keys those of ``keys.put``; a value that is no list
    is fixed. ``prices`` are per device and hour, by hardware. ``slos`` are limits in seconds,
    by metric and statistic, as ``ttft.p99``. The first ``warmup`` of the requests, by arrival,
    are sent but not judged.
    """

    base: str | None = None
    operators: str | None = None
    axes: Grid | list[Grid] = []
    points: list[Grid] = []
    sample: Sample | None = None
    search: Search | None = None
    constraints: Constraints = Constraints()
    prices: dict[str, float] = {}
    slos: dict[str, float] = {}
    objective: str = "tokens_per_s_per_gpu"
    warmup: float = Field(0.0, ge=0, lt=1)
    capacity: Capacity | None = None

    @property
    def grids(self) -> list[Grid]:
        """The axes as a list of grids."""
        return self.axes if isinstance(self.axes, list) else [self.axes]

    @property
    def set_keys(self) -> list[str]:
        """Keys that any point sets, in the order of the file."""
        return list(dict.fromkeys(k for grid in (*self.grids, *self.points) for k in grid))

    @property
    def objective_column(self) -> str:
        """The column of the results that is the objective."""
        if self.objective in OBJECTIVES:
            return self.objective
        return statistic_of(self.objective, "objective").column

    def objective_words(self) -> dict[str, Any]:
        """Name, label and unit of the objective, and whether more of it is better."""
        label, unit, more = OBJECTIVES.get(self.objective, (self.objective, "s", False))
        return {"name": self.objective, "label": label, "unit": unit, "more_is_better": more}


@dataclass(frozen=True, slots=True)
class Statistic:
    """A statistic of a request metric: ``ttft.p99``."""

    metric: str
    name: str

    @property
    def percentile(self) -> float | None:
        """0 to 100; None for the mean."""
        return None if self.name == "mean" else float(self.name[1:])

    @property
    def column(self) -> str:
        """Its column in the results."""
        return slo_column(f"{self.metric}.{self.name}")


def slo_column(name: str) -> str:
    """The column of a statistic: ``ttft.p99`` -> ``ttft_p99_s``."""
    return f"{name.replace('.', '_')}_s"


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file. Raises ConfigError with every fault as ``file: key: what``."""
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError:
        raise ConfigError(f"{path}: no such sweep file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys such as base and axes")
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_fault(e, path) for e in error.errors())) from None
    _check(sweep, path)
    return sweep


_INNER: dict[str, type[BaseModel]] = {
    "sample": Sample, "search": Search, "capacity": Capacity, "constraints": Constraints,
}  # fmt: skip


def _fault(error: Any, path: Path) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        model = _INNER.get(str(error["loc"][0]), Sweep) if len(error["loc"]) > 1 else Sweep
        return f"{path}: unknown key {where}{nearest(str(error['loc'][-1]), model.model_fields)}"
    if error["type"] == "missing":
        return f"{path}: {where} is missing"
    return f"{path}: {where}: {error['msg'][0].lower()}{error['msg'][1:]}, got {error['input']!r}"


def _check(sweep: Sweep, path: Path) -> None:
    """Refuse what contradicts itself."""
    for name, limit in sweep.slos.items():
        statistic_of(name, f"{path}: slos")
        if not limit > 0:
            raise ConfigError(f"{path}: slos.{name}: must be above 0 seconds, got {limit}")
    if sweep.objective not in OBJECTIVES:
        try:
            statistic_of(sweep.objective, f"{path}: objective")
        except ConfigError:
            raise ConfigError(
                f"{path}: objective: unknown {sweep.objective!r}"
                f"{nearest(sweep.objective, [*OBJECTIVES, 'e2e.mean', 'ttft.p99'])}"
            ) from None
    needs_price = sweep.objective.startswith("cost") or sweep.constraints.cost_per_hour
    if needs_price and not sweep.prices:
        raise ConfigError(f"{path}: prices: needed for a cost, by hardware and hour")
    wants_slos = "goodput" in sweep.objective or sweep.capacity is not None
    if wants_slos and not sweep.slos:
        raise ConfigError(f"{path}: slos: needed for goodput and capacity")
    if sweep.objective.startswith("capacity") and sweep.capacity is None:
        raise ConfigError(f"{path}: capacity: needed for the objective {sweep.objective}")
    if sweep.capacity is not None and not sweep.capacity.low < sweep.capacity.high:
        raise ConfigError(f"{path}: capacity: low must be below high")
    if sweep.sample is not None and sweep.search is not None:
        raise ConfigError(f"{path}: sample and search: only one of them")
    if not sweep.points and not any(sweep.grids):
        raise ConfigError(f"{path}: axes or points: nothing is varied")


def statistic_of(name: str, where: str) -> Statistic:
    """``ttft.p99`` as a statistic. Raises ConfigError."""
    metric, _, statistic = name.partition(".")
    if metric not in SLO_METRICS:
        raise ConfigError(f"{where}: unknown metric {metric!r}{nearest(metric, SLO_METRICS)}")
    if not STATISTIC.fullmatch(statistic):
        raise ConfigError(f"{where}: {name}: the statistic must be mean or a percentile as p99")
    return Statistic(metric, statistic)


def statistics_of(sweep: Sweep) -> list[Statistic]:
    """All statistics a row reports: the usual ones and those the sweep names."""
    names: Sequence[Literal["mean", "p50", "p90", "p99"]] = ("mean", "p50", "p90", "p99")
    usual = [Statistic(m, s) for m in ("ttft", "tpot", "e2e") for s in names]
    named = [*sweep.slos, *([sweep.objective] if sweep.objective not in OBJECTIVES else [])]
    return list(dict.fromkeys([*usual, *(statistic_of(n, "slos") for n in named)]))
