"""The deployments a sweep starts from, and the files they name, known by content.

A deployment refers to its files (model, profile, hardware sheet) by a name made from their
content, so that a point's hash is the same wherever the files lie, and a process anywhere
can lay them out anew.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from replay.whatif.keys import BASE, RUN_KEYS, Raw, put, settle_memory
from simulator.deployment import find_file, load_deployment, parse_deployment
from simulator.moe.fit import LOADS
from simulator.step_time.deployed import KERNELS
from simulator.step_time.fitted import PROFILE
from simulator.step_time.overhead import OVERHEAD
from traces.bundle import content_hash, inside, is_bundle, read_bundle
from traces.digest import text_digest
from traces.errors import ConfigError, TraceError

OF_A_PROFILE = (PROFILE, KERNELS, OVERHEAD, LOADS)
SHORT = 16  # characters of a digest in a name
Settings = dict[str, Any]


@dataclass(slots=True)
class Files:
    """Files and folders by the name deployments use: where they lie, and their bytes.

    Only what a simulation reads is kept: a profile's own files, not its baked tables.
    """

    places: dict[str, str] = field(default_factory=dict)
    contents: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def add(self, kind: str, path: Path) -> str:
        """Take in a file (or a profile's folder); returns its name. Raises TraceError."""
        wanted = [path / n for n in OF_A_PROFILE] if path.is_dir() else [path]
        parts = {p.name: p for p in wanted if p.is_file()}
        if not parts:
            raise TraceError(f"{path}: no {PROFILE} there; make one with frontier fit")
        digest = text_digest({n: content_hash(p) for n, p in parts.items()})[:SHORT]
        name = f"{kind}-{digest}{path.suffix if not path.is_dir() else ''}"
        if name not in self.places:
            self.places[name] = str(path.resolve())
            self.contents[name] = {"" if path.is_file() else n: p.read_bytes()
                                   for n, p in parts.items()}  # fmt: skip
        return name

    def lay_out(self, home: Path) -> None:
        """Make all of them appear in ``home``: links where they lie here, else copies."""
        for name, contents in self.contents.items():
            place = Path(self.places[name])
            if _holds(place, contents):
                (home / name).symlink_to(place)
            elif "" in contents:
                (home / name).write_bytes(contents[""])
            else:
                (home / name).mkdir()
                for part, data in contents.items():
                    (home / name / part).write_bytes(data)


def _holds(place: Path, contents: dict[str, bytes]) -> bool:
    files = {n: place / n if n else place for n in contents}
    return all(f.is_file() and f.read_bytes() == contents[n] for n, f in files.items())


@dataclass(frozen=True, slots=True)
class Base:
    """A deployment to start from, its files named by content."""

    raw: Raw
    ignored: tuple[str, ...] = ()


@dataclass(slots=True)
class Bases:
    """Bases by the name a sweep gives them; ``home`` is the folder of the sweep file."""

    home: Path
    files: Files = field(default_factory=Files)
    by_name: dict[str, Base] = field(default_factory=dict)
    default: str = ""
    _found: dict[tuple[str, str], str] = field(default_factory=dict)

    def load(self, name: str, path: Path, operators: Path | None) -> None:
        """Read a deployment file or a bundle's deployment. Raises ConfigError, TraceError."""
        ignored: tuple[str, ...] = ()
        if is_bundle(path):
            manifest = read_bundle(path, eager=False).manifest
            source = f"{path}/bundle.yaml: deployment"
            deployment = parse_deployment(manifest.deployment, source)
            ignored = tuple(manifest.ignored)
            version: str | None = manifest.engine_version
            model, beside = inside(path, deployment.model), path
        else:
            deployment, beside = load_deployment(path), path.resolve().parent
            version = deployment.engine_version
            model = find_file(deployment.model, beside)
        raw = deployment.model_dump(mode="json", by_alias=True, exclude_unset=True)
        raw.pop("launch", None)
        for cluster in raw["clusters"]:
            cluster.setdefault("name", "main")
        raw["model"] = self.files.add("model", model)
        profile = operators or (
            find_file(deployment.operators, beside) if deployment.operators else None
        )
        if profile is not None:
            raw["operators"] = self.files.add("operators", profile)
        for cluster in raw["clusters"]:
            if cluster.get("operators"):
                found = find_file(cluster["operators"], beside)
                cluster["operators"] = self.files.add("operators", operators or found)
            if is_sheet(cluster.get("hardware")):
                cluster["hardware"] = self.files.add("hardware", beside / cluster["hardware"])
        if version:
            raw["engine_version"] = version
        self.by_name[name] = Base(raw, ignored)

    def resolve(self, key: str, value: Any) -> Any:
        """A setting as the deployment has it: a file it names becomes its content's name."""
        last = re.split(r"[.\]]", key)[-1]
        kinds = ["model", "operators"] if last == key or key.endswith("].operators") else []
        if last == "hardware" and is_sheet(value):
            kinds = ["hardware"]
        if last not in kinds or not isinstance(value, str):
            return value
        if (last, value) not in self._found:
            self._found[last, value] = self.files.add(last, find_file(value, self.home))
        return self._found[last, value]

    def deployment(self, settings: Settings) -> tuple[Raw, list[str]]:
        """The deployment of a point, as its file would have it, and what to know of it.

        Raises ConfigError for a key that names nothing, or no base.
        """
        name = str(settings.get(BASE, self.default))
        if not name:
            raise ConfigError("base: needed, the workload has no deployment of its own")
        base = self.by_name[name]
        raw = copy.deepcopy(base.raw)
        for key, value in settings.items():
            if key not in (BASE, *RUN_KEYS):
                put(raw, key, self.resolve(key, value))
        return raw, settle_memory(base.raw, raw)

    def as_file(self, settings: Settings) -> str:
        """The deployment of a point as the text of a file, with its files where they lie."""
        text = yaml.safe_dump(self.deployment(settings)[0], sort_keys=False, width=100)
        for name, place in self.files.places.items():
            text = text.replace(name, place)
        return text


def is_sheet(hardware: Any) -> bool:
    """Whether hardware is named by a file of one's own."""
    return isinstance(hardware, str) and hardware.endswith((".yaml", ".yml"))


def deployment_hash(raw: Raw) -> str:
    """Hex digest of a deployment, its files counting by content, defaults filled in."""
    try:
        whole = parse_deployment(raw, "").model_dump(mode="json", by_alias=True)
    except ConfigError:
        whole = raw
    return text_digest(whole)
