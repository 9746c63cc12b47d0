"""What kernels do not tell of a step: constants of one engine version on one device.

``step_s`` is added to every forward: what the host exposes between steps. ``prompt_step_s`` is
added to forwards with prompts among their rows, which vLLM does not replay as one CUDA graph but
launches piece by piece (``cudagraph_mode`` FULL_AND_PIECEWISE, its default). ``slowdown`` is the
share by which every kernel takes longer than where it was measured (less, if negative): clocks,
power, neighbours in a graph. ``frontend_s`` lies between a request's arrival and the engine's
queue, and holds what the client's path adds where a client measured. They lie beside the kernels,
``overhead.yaml``, with what they were fitted on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import yaml

from traces.errors import ConfigError, TraceError, nearest

OVERHEAD = "overhead.yaml"
SCHEMA = 1


@dataclass(slots=True)
class Overhead:
    """Seconds a step, a step with prompts and a request; 95 % intervals; what it was fitted on."""

    engine_version: str
    hardware: str
    step_s: float
    frontend_s: float
    prompt_step_s: float = 0.0
    slowdown: float = 0.0
    intervals: dict[str, list[float]] = field(default_factory=dict)
    fitted_on: list[dict[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    schema: int = SCHEMA

    def check(self, engine_version: str | None, hardware: str, source: str) -> None:
        """Refuse another engine version or device: ConfigError.

        Which build of a version it is (``0.32.0+cpu``) the hardware tells.
        """
        for what, own, asked in (
            ("engine version", self.engine_version, engine_version),
            ("hardware", self.hardware, hardware),
        ):
            if own.split("+")[0] != (asked or "").split("+")[0]:
                raise ConfigError(
                    f"{source}: the overhead was fitted for {what} {own}, the deployment has "
                    f"{asked or 'none'}; fit it anew, or remove {OVERHEAD}"
                )

    def constants(self) -> dict[str, float]:
        """Those that are not 0, by name; a step's and a request's always."""
        found = {"step_s": self.step_s, "frontend_s": self.frontend_s}
        others = {"prompt_step_s": self.prompt_step_s, "slowdown": self.slowdown}
        return found | {name: value for name, value in others.items() if value}


def save_overhead(overhead: Overhead, profile: Path) -> None:
    """Write ``overhead.yaml``."""
    text = yaml.safe_dump(asdict(overhead), sort_keys=False, width=100)
    (profile / OVERHEAD).write_text(text, encoding="utf-8")


def load_overhead(profile: Path) -> Overhead | None:
    """Read ``overhead.yaml``, None if there is none. Raises TraceError."""
    file = profile / OVERHEAD
    if not file.is_file():
        return None
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TraceError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise TraceError(f"{file}: not an overhead of schema {SCHEMA}")
    known = [f.name for f in fields(Overhead)]
    for key in raw:
        if key not in known:
            raise TraceError(f"{file}: unknown key {key!r}{nearest(str(key), known)}")
    slowdown = raw.get("slowdown", 0.0)
    if not isinstance(slowdown, int | float) or not slowdown > -1:
        raise TraceError(f"{file}: slowdown: must be a number above -1, got {slowdown!r}")
    try:
        return Overhead(**raw)
    except TypeError as error:
        raise TraceError(f"{file}: {str(error).split('() ')[-1]}") from None
