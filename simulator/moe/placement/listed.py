"""A placement from a file: for each rank the experts it holds, in all layers or in each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from simulator.moe.placement.base import Floats, Ints
from traces.errors import ConfigError


class Listed:
    """``[[expert, ...], ...]``, one list a rank, or a list of such, one a layer. YAML or JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def slots(self, shares: Floats, ranks: int, redundant: int) -> Ints:
        layers, experts = shares.shape
        held = self._read()
        if held.ndim == 2:
            held = np.broadcast_to(held, (layers, *held.shape))
        if held.shape[:2] != (layers, ranks):
            raise ConfigError(
                f"{self.path}: {held.shape[1]} ranks in {held.shape[0]} layers, the deployment "
                f"has {ranks} in {layers}"
            )
        if held.shape[2] * ranks != experts + redundant:
            raise ConfigError(
                f"{self.path}: {held.shape[2] * ranks} experts on {ranks} ranks, the deployment "
                f"has {experts} and {redundant} redundant ones"
            )
        for layer, row in enumerate(held):
            missing = np.setdiff1d(np.arange(experts), row)
            strange = np.setdiff1d(row, np.arange(experts))
            if len(missing) or len(strange):
                which = f"no expert {missing[0]}" if len(missing) else f"no such {strange[0]}"
                raise ConfigError(f"{self.path}: layer {layer}: {which}")
        return held

    def _read(self) -> Ints:
        try:
            held = np.array(yaml.safe_load(self.path.read_text()))
        except OSError:
            raise ConfigError(f"{self.path}: no such placement file") from None
        except (yaml.YAMLError, UnicodeDecodeError, ValueError):
            held = np.array([])
        if held.dtype.kind != "i" or held.ndim not in (2, 3) or not held.size:
            raise ConfigError(
                f"{self.path}: expected a list of experts for each rank, as many on each"
            )
        return held.astype(np.int64)
