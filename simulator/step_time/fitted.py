"""A step-time model fitted from captured steps, and its profile on disk.

step = host + forward, next start = end + gap; each part is a sum of non-negative
coefficient x term (``terms.py``). The profile is data: ``profile.yaml`` says the terms,
their coefficients and intervals, the range they were fitted on, and on which bundles.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from simulator.clock import to_ps
from simulator.model import ModelSpec
from simulator.step_time.compiled import CompiledStepTime
from simulator.step_time.terms import HOST_TERMS, Term, forward_terms
from traces.errors import TraceError, nearest

PROFILE = "profile.yaml"
SCHEMA = 1
# arguments of the engine under which one profile's times do not hold for another's
LAYOUT = (
    "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size",
    "enable_expert_parallel", "dtype", "kv_cache_dtype", "quantization", "enforce_eager",
)  # fmt: skip
RANGED = ("tokens", "rows", "decode_context", "prefill_pairs")


@dataclass(slots=True)
class StepProfile:
    """Content of ``profile.yaml``; coefficients are seconds per unit of their term.

    ``layout`` holds the engine's arguments that a step's time depends on; ``ranges`` the
    smallest and largest value of each ranged feature that was fitted; ``fit`` what the fit
    achieved; ``link`` what captures of a prefill and a decode cluster told of what connects
    them; ``fitted_on`` bundle hashes, so that no run is taken for a hold-out that was fitted.
    """

    model: dict[str, Any]
    engine: str
    engine_version: str
    hardware: str
    layout: dict[str, Any]
    forward: dict[str, float]
    host: dict[str, float]
    gap: dict[str, float]
    frontend_s: float
    ranges: dict[str, list[int]]
    fitted_on: list[dict[str, str]]
    intervals: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    link: dict[str, Any] | None = None
    kind: str = "steps"
    schema: int = SCHEMA


def save_profile(profile: StepProfile, path: Path) -> None:
    """Write ``path/profile.yaml``."""
    path.mkdir(parents=True, exist_ok=True)
    said = {key: value for key, value in asdict(profile).items() if value is not None}
    (path / PROFILE).write_text(yaml.safe_dump(said, sort_keys=False, width=100))


def load_profile(path: Path) -> StepProfile:
    """Read ``path/profile.yaml``; raises TraceError."""
    file = path / PROFILE
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError:
        raise TraceError(f"{path}: no {PROFILE} there; make one with frontier fit") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TraceError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA or raw.get("kind") != "steps":
        raise TraceError(f"{file}: not a step profile of schema {SCHEMA}")
    known = {f.name for f in fields(StepProfile)}
    for key in raw:
        if key not in known:
            raise TraceError(f"{file}: unknown key {key!r}{nearest(str(key), known)}")
    try:
        return StepProfile(**raw)
    except TypeError as error:
        raise TraceError(f"{file}: {str(error).split('() ')[-1]}") from None


class FittedStepTime(CompiledStepTime):
    """A profile made ready for one model; the step-time model of captured engines."""

    def __init__(self, profile: StepProfile, model: ModelSpec) -> None:
        super().__init__(
            _bind(profile.forward, forward_terms(model.moe, together=True)),
            _bind(profile.host, HOST_TERMS),
            _bind(profile.gap, HOST_TERMS),
            frontend_ps=to_ps(profile.frontend_s),
            ranges={name: profile.ranges[name][1] for name in RANGED},
        )


def _bind(coefficients: dict[str, float], known: dict[str, Term]) -> list[tuple[float, Term]]:
    for name in coefficients:
        if name not in known:
            raise TraceError(f"profile: unknown term {name!r}{nearest(name, known)}")
    return [(value, known[name]) for name, value in coefficients.items()]
