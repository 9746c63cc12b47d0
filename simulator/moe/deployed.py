"""Expert loads as a deployment names them: ``moe`` of its file, and what the engine says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from simulator.deployment import Engine, MoE
from simulator.model import ModelSpec
from simulator.moe.fit import LOADS, read_fitted
from simulator.moe.laws import LoadLaw, Recorded, Table, check_law, closed_form, prompts_of
from simulator.moe.placement import make_placement
from simulator.moe.recorded import expert_counts
from simulator.step_time.experts import ExpertLoads
from traces.bundle import content_hash, is_bundle, read_bundle
from traces.errors import ConfigError


def deployed_loads(
    moe: MoE, model: ModelSpec, engine: Engine, home: Path, profile: Path | None
) -> ExpertLoads:
    """The load law and placement of an engine's experts; paths are relative to ``home``.

    Raises ConfigError for what is unknown or missing.
    """
    law = check_law(moe.expert_load)
    placement = moe.placement
    if engine.enable_eplb and placement == "linear":
        placement = "eplb"
    said: dict[str, Any] = {**law, "placement": placement}
    if model.moe is None:
        return ExpertLoads()
    made = _law(law, model, home, profile, said)
    if isinstance(placement, dict) and "file" in placement:
        said["placement_hash"] = content_hash(home / str(placement["file"]))
    return ExpertLoads(made, make_placement(placement, home), said)


def _law(
    law: dict[str, Any], model: ModelSpec, home: Path, profile: Path | None, said: dict[str, Any]
) -> LoadLaw:
    assert model.moe is not None
    if law["from"] == "bundle":
        path = home / law["path"] if "path" in law else home
        if not is_bundle(path):
            raise ConfigError(f"moe.expert_load: {path} is no bundle; path: must name one")
        said["experts"] = content_hash(path / "experts.parquet")
        record = expert_counts(read_bundle(path, eager=False), model.moe.top_k)
        return Recorded(record, resampled=bool(law.get("resample", False)))
    if law["from"] == "table":
        if "path" not in law:
            raise ConfigError("moe.expert_load.path: the file with the table is missing")
        path = home / law["path"]
        shares = _read_table(path)
        said["table"] = content_hash(path)
        return Table(shares, prompts_of(law), str(path))
    if law["from"] == "fitted":
        if profile is None or not (profile / LOADS).is_file():
            raise ConfigError(
                f"moe.expert_load: the operator profile has no {LOADS}; frontier fit writes it "
                "from a bundle with experts.parquet"
            )
        said["fitted"] = content_hash(profile / LOADS)
        return read_fitted(profile, model)
    return closed_form(law)


def _read_table(path: Path) -> npt.NDArray[np.float64]:
    """Shares or counts, ``(layers, experts)``: a YAML or JSON list of lists, one a layer."""
    try:
        table = np.array(yaml.safe_load(path.read_text()), float)
    except OSError:
        raise ConfigError(f"{path}: no such table of expert loads") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError):
        table = np.array(0.0)
    if table.ndim != 2 or not table.size or (table < 0).any() or (table.sum(axis=1) <= 0).any():
        raise ConfigError(f"{path}: expected a list of numbers from 0 for each layer")
    shares: npt.NDArray[np.float64] = table / table.sum(axis=1, keepdims=True)
    return shares
