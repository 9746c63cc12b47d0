"""Settings of a point put into a deployment, by keys as a deployment file has them.

``clusters[prefill].replicas``, ``links[0].bandwidth_gb_s``, ``routing.policy``; a cluster is
named or numbered, and where there is only one its keys stand alone: ``replicas``,
``engine.max_num_seqs``. ``rate_scale`` and ``concurrency`` are the run's, ``base`` another
deployment to start from.
"""

from __future__ import annotations

import re
import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from simulator.deployment import Cluster, Deployment, Engine, Link
from traces.errors import ConfigError, nearest

RUN_KEYS = ("rate_scale", "concurrency")
BASE = "base"
_PART = re.compile(r"([A-Za-z_]\w*)(?:\[([^\]]+)\])?")
_FIXED = ("launch", "clusters", "links")  # of a deployment: not varied as a whole
# What KV capacity follows from: with another one, the captured number of blocks is void.
_MEMORY_KEYS = (
    "hardware", "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "dtype",
    "kv_cache_dtype", "quantization", "gpu_memory_utilization",
)  # fmt: skip

Raw = dict[str, Any]


def put(raw: Raw, key: str, value: Any) -> None:
    """Set ``key`` of the deployment ``raw`` (as its file has it) to ``value``, in place.

    Raises ConfigError for a key that names nothing, with the nearest that does.
    """
    parts = _parts(key)
    node: Raw = raw
    model: type[BaseModel] = Deployment
    names = list(_names(raw))
    if parts[0][0] in Cluster.model_fields and parts[0][0] not in Deployment.model_fields:
        clusters = raw["clusters"]
        if len(clusters) > 1:
            first = clusters[0]["name"]
            raise ConfigError(
                f"{key}: of which cluster? write clusters[{first}].{key} "
                f"(clusters: {', '.join(c['name'] for c in clusters)})"
            )
        node, model = clusters[0], Cluster
    for i, (name, selector) in enumerate(parts):
        known = names if i == 0 else list(model.model_fields)
        if name not in model.model_fields or (i == 0 and name not in known):
            raise ConfigError(f"unknown key {key!r}{_hint(name, known, parts, i)}")
        last = i == len(parts) - 1
        inner = _model_of(model, name)
        if selector is not None:
            if last:
                raise ConfigError(f"{key}: names a whole entry of {name}; which key of it?")
            node, model = _entry(node, name, selector, key), Cluster if name == "clusters" else Link
        elif last:
            node[_alias(model, name)] = value
        elif inner is not None:
            node, model = node.setdefault(name, {}), inner
        elif not _is_free(model, name):
            raise ConfigError(f"{key}: {name} has no keys of its own")
        else:
            _put_free(node, name, [n for n, _ in parts[i + 1 :]], value, key)
            return


def settle_memory(before: Raw, after: Raw) -> list[str]:
    """Let KV capacity follow what was changed; returns what was done, in words.

    A captured ``num_gpu_blocks`` holds for the captured memory, layout and block size. With
    another block size the same bytes are cut anew, as vLLM does; with another device or
    layout the number is left out, to be computed from memory.
    """
    notes = []
    for old, new in zip(before["clusters"], after["clusters"], strict=True):
        given = new.get("engine", {}).get("num_gpu_blocks")
        if given is None or given != old.get("engine", {}).get("num_gpu_blocks"):
            continue
        changed = [n for n in _MEMORY_KEYS if _value(old, n) != _value(new, n)]
        changed += ["model"] if before["model"] != after["model"] else []
        sizes = [_value(raw, "block_size") for raw in (old, new)]
        if changed:
            del new["engine"]["num_gpu_blocks"]
            notes.append(f"KV capacity computed, not the captured one: other {changed[0]}")
        elif sizes[0] != sizes[1] and all(isinstance(size, int) and size > 0 for size in sizes):
            new["engine"]["num_gpu_blocks"] = given * sizes[0] // sizes[1]
            notes.append("captured KV capacity cut into blocks of another size")
    return notes


def _value(cluster: Raw, name: str) -> Any:
    if name in Cluster.model_fields:
        return cluster.get(name, Cluster.model_fields[name].default)
    return cluster.get("engine", {}).get(name, Engine.model_fields[name].default)


def _parts(key: str) -> list[tuple[str, str | None]]:
    parts = []
    for text in re.split(r"\.(?![^\[]*\])", key):
        found = _PART.fullmatch(text)
        if not found:
            raise ConfigError(f"{key!r} is no key; write it as clusters[main].engine.max_num_seqs")
        parts.append((found[1], found[2]))
    return parts


def _names(raw: Raw) -> list[str]:
    own = [n for n in Deployment.model_fields if n != "launch"]
    single = Cluster.model_fields if len(raw["clusters"]) == 1 else ()
    return list(dict.fromkeys([*own, *single]))


def _hint(name: str, known: list[str], parts: list[tuple[str, str | None]], i: int) -> str:
    prefix = ".".join(n if s is None else f"{n}[{s}]" for n, s in parts[:i])
    names = [f"{prefix}.{n}" if prefix else n for n in known if n not in _FIXED]
    if not prefix:
        names += [*RUN_KEYS, "clusters[...]", "links[...]"]
    return nearest(f"{prefix}.{name}" if prefix else name, names)


def _entry(raw: Raw, name: str, selector: str, key: str) -> Raw:
    entries: list[Raw] = raw.get(name) or []
    if selector.isdigit() and int(selector) < len(entries):
        return entries[int(selector)]
    labels = [
        str(e.get("name", "main")) if name == "clusters" else f"{e['from']}->{e['to']}"
        for e in entries
    ]
    if selector in labels:
        return entries[labels.index(selector)]
    known = labels or ["none"]
    raise ConfigError(f"{key}: unknown {name}[{selector}]{nearest(selector, known)}")


def _model_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model a field holds, if it holds one."""
    annotation = model.model_fields[name].annotation
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    for choice in choices or (annotation,):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _is_free(model: type[BaseModel], name: str) -> bool:
    """Whether a field holds any mapping."""
    annotation = model.model_fields[name].annotation
    return annotation is Any or any(
        get_origin(a) is dict for a in (annotation, *get_args(annotation))
    )


def _alias(model: type[BaseModel], name: str) -> str:
    return model.model_fields[name].alias or name


def _put_free(node: Raw, name: str, rest: list[str], value: Any, key: str) -> None:
    """Into a field that holds any mapping, as ``moe.expert_load.from``."""
    inner = node.get(name)
    if not isinstance(inner, dict):
        inner = {}
    node[name] = inner
    for part in rest[:-1]:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {part} holds no keys")
    inner[rest[-1]] = value
