"""Load laws by name, as ``moe.expert_load`` of a deployment names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from simulator.moe.laws.base import Drawn, Layers, LoadLaw, Prompts
from simulator.moe.laws.dirichlet import Dirichlet
from simulator.moe.laws.recorded import Recorded
from simulator.moe.laws.table import Table
from simulator.moe.laws.uniform import Uniform
from simulator.moe.laws.zipf import Zipf
from traces.errors import ConfigError, nearest

# law -> the numbers it takes beside those of prompts
LAWS: dict[str, tuple[str, ...]] = {
    "uniform": (), "zipf": ("exponent",), "dirichlet": ("concentration",), "table": (),
    "bundle": (), "fitted": (),
}  # fmt: skip
PROMPTS = ("spread", "correlation", "prompt_tokens")
OTHER = {"bundle": ("path", "resample"), "table": ("path",)}


def check_law(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """``moe.expert_load`` as a mapping with ``from``; raises ConfigError for what is unknown."""
    law = {"from": given} if isinstance(given, str) else dict(given)
    name = law.get("from")
    if name not in LAWS:
        hint = nearest(str(name), LAWS)
        raise ConfigError(f"moe.expert_load.from: unknown {name!r}{hint}")
    drawn = name in ("zipf", "dirichlet", "table")
    known = ("from", *LAWS[name], *OTHER.get(name, ()), *(PROMPTS if drawn else ()))
    for key, value in law.items():
        if key not in known:
            raise ConfigError(f"moe.expert_load: unknown key {key!r}{nearest(key, known)}")
        if key in (*LAWS[name], *PROMPTS):
            if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
                raise ConfigError(f"moe.expert_load.{key}: must be a number from 0, got {value!r}")
            if (key == "correlation" and value >= 1) or (key == "concentration" and value == 0):
                raise ConfigError(f"moe.expert_load.{key}: {value} is out of its range")
    return law


def prompts_of(law: Mapping[str, Any]) -> Prompts:
    """How alike the tokens of a prompt are."""
    return Prompts(
        float(law.get("spread", 0.0)), float(law.get("correlation", 0.0)),
        int(law.get("prompt_tokens", 0)),
    )  # fmt: skip


def closed_form(law: Mapping[str, Any]) -> LoadLaw:
    """A law that needs no file: uniform, zipf or dirichlet."""
    prompts = prompts_of(law)
    made: dict[str, Callable[[], LoadLaw]] = {
        "uniform": Uniform,
        "zipf": lambda: Zipf(float(law.get("exponent", 1.0)), prompts),
        "dirichlet": lambda: Dirichlet(float(law.get("concentration", 1.0)), prompts),
    }
    return made[law["from"]]()


__all__ = [
    "LAWS", "Dirichlet", "Drawn", "Layers", "LoadLaw", "Prompts", "Recorded", "Table", "Uniform",
    "Zipf", "check_law", "closed_form", "prompts_of",
]  # fmt: skip
