"""A library of fitted operators on disk: data, nothing executable.

``operators.yaml`` says what was fitted on what, ``operators.npz`` holds the arrays. Loading
does not need the kernels that were fitted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from simulator.operators.correction import of_data, to_data
from simulator.operators.families import family_named
from simulator.operators.library import Library
from simulator.operators.model import FittedOperator
from simulator.operators.roofline import Roofline
from simulator.operators.trees import Trees
from traces.errors import TraceError

SCHEMA = 4
PLAIN, ARRAYS = "operators.yaml", "operators.npz"


def save_library(library: Library, path: Path) -> None:
    """Write ``operators.yaml`` and ``operators.npz`` under ``path``; same bytes for the same."""
    plain, arrays = [], {}
    for i, operator in enumerate(library.operators):
        entry, own = _to_data(operator)
        plain.append(entry)
        arrays.update({f"{i}/{name}": values for name, values in own.items()})
    content = {
        "schema": SCHEMA, "fitted_on": library.fitted_on, "left_out": library.left_out,
        "operators": plain,
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    (path / PLAIN).write_text(text, encoding="utf-8")
    np.savez_compressed(path / ARRAYS, **arrays)


def load_library(path: Path) -> Library:
    """Read what ``save_library`` wrote; raises TraceError."""
    try:
        content = yaml.safe_load((path / PLAIN).read_text(encoding="utf-8"))
        with np.load(path / ARRAYS, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, BadZipFile, yaml.YAMLError) as error:
        raise TraceError(f"{path}: no fitted operators there: {error}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise TraceError(f"{path / PLAIN}: not fitted operators of schema {SCHEMA}")
    try:
        operators = [
            _of_data(e, _under(arrays, f"{i}/")) for i, e in enumerate(content["operators"])
        ]
    except (KeyError, TypeError, StopIteration) as error:
        raise TraceError(f"{path / PLAIN}: does not fit {ARRAYS}: {error!r}") from None
    return Library(operators, content["left_out"], content["fitted_on"])


def kept_library(profile: Path, kernels: str) -> Library | None:
    """The models in a profile, if they were fitted on ``kernels`` (its content's hash).

    None also for those of another schema: they are there to be fitted again. Raises TraceError
    for damaged ones.
    """
    if not (profile / PLAIN).is_file() or _schema(profile) != SCHEMA:
        return None
    library = load_library(profile)
    return library if library.fitted_on.get("kernels") == kernels else None


def _schema(path: Path) -> Any:
    with (path / PLAIN).open(encoding="utf-8") as file:
        return yaml.safe_load(file.readline() or "{}").get("schema")


def _under(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}


def _to_data(operator: FittedOperator) -> tuple[dict[str, Any], dict[str, Any]]:
    roofline = operator.roofline
    plain: dict[str, Any] = {
        "operator": operator.family,
        "key": operator.key,
        "rows": operator.rows,
        "features": list(operator.features),
        "roofline": {"floor_s": roofline.floor_s, "overlap": roofline.overlap,
                     "cost_s": dict(zip(operator.kinds, roofline.cost_s.tolist(), strict=True))},
        "lows": operator.lows,
        "highs": operator.highs,
        "names": operator.names,
        "corrections": [],
    }  # fmt: skip
    arrays = {n: getattr(operator, n) for n in ("residual", "seconds", "base")}
    for name, values in operator.place.items():
        arrays[f"place/{name}"] = values.astype(str) if values.dtype == object else values
    if operator.trees is not None:
        arrays.update({f"trees/{n}": v for n, v in operator.trees.arrays().items()})
    for i, correction in enumerate(operator.corrections):
        entry, own = to_data(correction)
        plain["corrections"].append(entry)
        arrays.update({f"correction/{i}/{n}": v for n, v in own.items()})
    return plain, arrays


def _of_data(plain: dict[str, Any], arrays: dict[str, Any]) -> FittedOperator:
    axes = {axis.name: axis for axis in family_named(plain["operator"]).axes}
    trees, roofline = _under(arrays, "trees/"), plain["roofline"]
    return FittedOperator(
        plain["operator"],
        plain["key"],
        tuple(roofline["cost_s"]),
        tuple(plain["features"]),
        Roofline(
            roofline["floor_s"], np.array(list(roofline["cost_s"].values())), roofline["overlap"]
        ),
        Trees.of(trees) if trees else None,
        [
            of_data(axes[entry["axis"]], entry, _under(arrays, f"correction/{i}/"))
            for i, entry in enumerate(plain["corrections"])
        ],
        {
            name: values.astype(object) if values.dtype.kind == "U" else values
            for name, values in _under(arrays, "place/").items()
        },
        arrays["residual"],
        arrays["seconds"],
        arrays["base"],
        plain["lows"],
        plain["highs"],
        plain["names"],
        plain["rows"],
    )
