"""Hardware sheets: what a device can do at best, and the links between devices.

One YAML file a device, named by its file; each number has its source and date under
``sources``. ``aliases`` are the names that torch gives the device, as they stand in captured
bundles. A deployment may also name a YAML file of its own, beside it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from traces.errors import ConfigError, nearest

SHEETS = Path(__file__).resolve().parent
Positive = Annotated[float, Field(gt=0)]
PeakDtype = Literal["fp32", "bf16", "fp8", "fp4", "int8"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceLink(_Strict):
    """A link of one device: bandwidth in one direction, and latency of a small message."""

    kind: str
    bandwidth_gb_s: Positive
    latency_us: float = Field(ge=0)


class Hardware(_Strict):
    """A device and its place in a node. GB are 1e9 bytes.

    ``memory_gb`` is what the driver leaves to programs (torch's ``total_memory``), which is
    what vLLM's ``gpu_memory_utilization`` is a share of; None where the device has no memory
    of its own. ``peak_tflops`` are dense, by dtype of the operands (fp16 as bf16), at the
    datasheet's boost clock: cards can run a few percent above it. ``gpus_per_domain`` GPUs
    reach each other over ``intra_node``: those of a node, or of a rack. ``inter_node`` joins
    domains; None where nothing does.
    """

    name: str
    kind: Literal["gpu", "cpu"]
    aliases: tuple[str, ...] = ()
    memory_gb: Positive | None
    memory_bandwidth_gb_s: Positive
    peak_tflops: dict[PeakDtype, Positive] = Field(min_length=1)
    sms: int = Field(ge=1)
    l2_mb: Positive
    gpus_per_node: int = Field(ge=1)
    gpus_per_domain: int = Field(ge=1)
    intra_node: DeviceLink
    inter_node: DeviceLink | None
    sources: dict[str, str]

    @model_validator(mode="after")
    def _every_number_has_a_source(self) -> Hardware:
        numbers = {
            name
            for name in type(self).model_fields
            if name not in ("name", "kind", "aliases", "sources")
            and getattr(self, name) is not None
        }
        if missing := sorted(numbers - self.sources.keys()):
            raise ValueError(f"no source for {', '.join(missing)}")
        if unknown := sorted(self.sources.keys() - numbers):
            raise ValueError(f"sources of what is not there: {', '.join(unknown)}")
        return self


def load_hardware(name: str, beside: Path | None = None) -> Hardware:
    """The sheet of a device, by sheet name, by torch's name of it, or by path.

    A name that ends in ``.yaml`` is a user's own sheet, relative to ``beside``. Raises
    ConfigError, with the nearest known name.
    """
    if name.endswith((".yaml", ".yml")):
        return _read((beside or Path()) / name)
    sheets = _shipped()
    for sheet in sheets:
        if name.casefold() in (sheet.name, *(a.casefold() for a in sheet.aliases)):
            return sheet
    known = [sheet.name for sheet in sheets]
    raise ConfigError(f"hardware: unknown {name!r}{nearest(name.casefold(), known)}")


@cache
def _shipped() -> tuple[Hardware, ...]:
    return tuple(_read(path) for path in sorted(SHEETS.glob("*.yaml")))


def _read(path: Path) -> Hardware:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError:
        raise ConfigError(f"{path}: no such hardware sheet") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys such as name and memory_gb")
    try:
        return Hardware.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("; ".join(_fault(e, path) for e in error.errors())) from None


def _fault(error: Any, path: Path) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key {where}{nearest(where, Hardware.model_fields)}"
    return f"{path}: {where + ': ' if where else ''}{error['msg']}"
