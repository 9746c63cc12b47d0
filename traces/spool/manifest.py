"""``bundle.yaml`` of a capture: the resolved deployment, and what a simulator will not model."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc

from traces.bundle import SPOOL, Manifest
from traces.spool.device import device_name
from traces.spool.replica import CLUSTER, Replica
from traces.spool.streams import Spool

# bundle's engine key -> where vLLM keeps the resolved value
_ENGINE = {
    "tensor_parallel_size": "parallel_config.tensor_parallel_size",
    "pipeline_parallel_size": "parallel_config.pipeline_parallel_size",
    "data_parallel_size": "parallel_config.data_parallel_size",
    "enable_expert_parallel": "parallel_config.enable_expert_parallel",
    "max_model_len": "model_config.max_model_len",
    "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
    "max_num_seqs": "scheduler_config.max_num_seqs",
    "block_size": "cache_config.block_size",
    "num_gpu_blocks": "cache_config.num_gpu_blocks",
    "gpu_memory_utilization": "cache_config.gpu_memory_utilization",
    "dtype": "model_config.dtype",
    "kv_cache_dtype": "cache_config.cache_dtype",
    "quantization": "model_config.quantization",
    "enable_prefix_caching": "cache_config.enable_prefix_caching",
    "enable_chunked_prefill": "scheduler_config.enable_chunked_prefill",
    "long_prefill_token_threshold": "scheduler_config.long_prefill_token_threshold",
    "scheduling_policy": "scheduler_config.policy",
    "async_scheduling": "scheduler_config.async_scheduling",
    "scheduler_reserve_full_isl": "scheduler_config.scheduler_reserve_full_isl",
    "watermark": "scheduler_config.watermark",
    "enforce_eager": "model_config.enforce_eager",
    "cudagraph_capture_sizes": "compilation_config.cudagraph_capture_sizes",
}
# setting -> (value under which it changes nothing, what it is)
_UNMODELLED = {
    "speculative_config": (None, "speculative decoding"),
    "lora_config": (None, "LoRA"),
    "kv_transfer_config": (None, "KV connector"),
    "ec_transfer_config": (None, "encoder cache connector"),
    "cache_config.kv_offloading_size": (None, "KV offloading"),
    "offload_config.uva.cpu_offload_gb": (0.0, "weight offloading"),
    "parallel_config.enable_dbo": (False, "dual-batch overlap"),
    "parallel_config.enable_eplb": (False, "expert load balancing (EPLB)"),
    "parallel_config.decode_context_parallel_size": (1, "decode context parallelism"),
    "parallel_config.prefill_context_parallel_size": (1, "prefill context parallelism"),
    "scheduler_config.max_num_scheduled_tokens": (None, "max_num_scheduled_tokens"),
    "scheduler_config.max_num_active_seqs": (None, "max_num_active_seqs"),
    "scheduler_config.max_num_queued_reqs": (None, "admission limit max_num_queued_reqs"),
    "scheduler_config.max_num_queued_tokens": (None, "admission limit max_num_queued_tokens"),
    "scheduler_config.long_prefill_token_threshold_adaptive": (False, "adaptive prefill cap"),
    "scheduler_config.prefill_schedule_interval": (1, "prefill balancing between DP ranks"),
    "scheduler_config.runner_type": ("generate", "pooling"),
    "model_config.multimodal_config": (None, "multimodal model"),
}
_MODELLED_KV = ("FullAttentionSpec", "SlidingWindowSpec", "MLAAttentionSpec")
_OUR_OWN = ("scheduler_cls", "worker_cls", "cudagraph_metrics", "instance_id")
_HF = ("hf_config", "hf_text_config")  # the bundle holds it as model.json
_ABSOLUTE = re.compile(r"(?<![\w.:/~])~?/(?:[^\s/\"',:=]+/)*([^\s/\"',:=]+)/?")
_SECRET = re.compile(r"^--(api-key|hf-token)(=|$)")


def spool_manifest(
    spool: Spool, engines: list[dict[str, Any]], replicas: list[Replica], zero_s: float
) -> Manifest:
    """The manifest of a spool; ``zero_s`` is the bundle's zero on the monotonic clock."""
    engine = engines[0]
    config, clock = engine["config"], engine["clock"]
    capture = next(iter(spool.objects("capture")), {})
    cluster = {
        "name": CLUSTER,
        "role": "colocated",
        "replicas": 1,  # one engine, its data-parallel ranks counted below
        "hardware": device_name(engine["device"]),
        "engine": _engine_arguments(config, len(engines)),
    }
    return Manifest(
        kind="measured",
        engine="vllm",
        engine_version=str(engine["versions"].get("vllm", "")),
        clock={
            "name": "CLOCK_MONOTONIC",
            "zero_monotonic_s": float(zero_s),
            "zero_epoch_s": float(zero_s) + clock["epoch_s"] - clock["monotonic_s"],
        },
        command=scrub_command(capture.get("command", [])),
        deployment={
            "model": f"{SPOOL}/model.{engine['replica']}.jsonl",
            "clusters": [cluster],
            "routing": {"policy": "vllm_dp" if len(engines) > 1 else "round_robin"},
        },
        hash_block_tokens=engine["block_size"],
        ignored=unmodelled(engine, replicas),
        notes={
            "versions": engine["versions"],
            "device": engine["device"],
            **({"patches": patches} if (patches := engine.get("patches")) else {}),
            "spool": _spool_notes(spool, replicas),
            "vllm_config": _published(config),
        },
    )


def unmodelled(engine: dict[str, Any], replicas: list[Replica]) -> list[str]:
    """Features in use that the simulator does not know, each a short phrase."""
    found = [
        what if isinstance(idle, bool) or idle in (None, "generate") else f"{what}={value}"
        for key, (idle, what) in _UNMODELLED.items()
        if (value := _get(engine["config"], key)) not in (None, idle)
    ]
    specs = sorted({group["spec"] for group in engine["kv_groups"]} - {*_MODELLED_KV})
    found += [f"KV cache of {spec}" for spec in specs]
    uses = Counter(
        feature
        for replica in replicas
        for features in replica.added.column("features").to_pylist()
        for feature in features or ()
    )
    return found + [f"{feature} ({uses[feature]} requests)" for feature in sorted(uses)]


def scrub_command(command: list[str]) -> list[str]:
    """A command line without what belongs to one machine or person: paths become names.

    >>> scrub_command(["/opt/v/bin/vllm", "serve", "/data/m/qwen/", "--api-key", "x"])
    ['vllm', 'serve', 'qwen', '--api-key', '***']
    """
    kept: list[str] = []
    for word in command:
        secret = _SECRET.match(word)
        if kept and (last := _SECRET.match(kept[-1])) and not last[2]:
            kept.append("***")
        else:
            kept.append(f"--{secret[1]}=***" if secret and secret[2] else scrub(word))
    return kept


def scrub(text: str) -> str:
    """Replace absolute paths by their last part.

    >>> scrub("A=/x/y"), scrub("http://h/v1"), scrub("Qwen/Qwen3-8B"), scrub('{"a": "/x/y/z"}')
    ('A=y', 'http://h/v1', 'Qwen/Qwen3-8B', '{"a": "z"}')
    """
    return _ABSOLUTE.sub(r"\1", text)


def _engine_arguments(config: dict[str, Any], replicas: int) -> dict[str, Any]:
    values = {key: _get(config, path) for key, path in _ENGINE.items()}
    values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    values["data_parallel_size"] = replicas  # vLLM resets it to 1 where ranks are independent
    if _get(config, "compilation_config.cudagraph_mode") in (None, "NONE"):
        values["cudagraph_capture_sizes"] = []
    return {key: value for key, value in values.items() if value is not None}


def _get(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, dict) else None
    return config


def _published(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _published(v) for k, v in value.items() if k not in (*_OUR_OWN, *_HF)}
    if isinstance(value, list):
        return [_published(v) for v in value]
    return scrub(value) if isinstance(value, str) else value


def _spool_notes(spool: Spool, replicas: list[Replica]) -> dict[str, Any]:
    unfinished = sum(int((r.left_of < 0).sum()) for r in replicas)
    late = sum(int((r.added["age_s"].to_numpy() < 0).sum()) for r in replicas)
    empty = sum(pc.sum(r.steps["empty_before"]).as_py() or 0 for r in replicas)
    empty_preempted = sum(len(pc.list_flatten(r.steps["preempted_before"])) for r in replicas)
    numbers = [r.steps["step"].to_numpy() for r in replicas]
    lost = sum(int(n[-1]) + 1 - len(n) for n in numbers if len(n))
    wait_s = np.concatenate([r.forward_s - r.thread_s for r in replicas])
    timed = np.isfinite(wait_s)
    notes: dict[str, Any] = {
        "state": "read from the spool of a capture that was not closed",
        "torn last rows left out": sorted(spool.torn),
        "requests unfinished": unfinished,
        "arrivals stamped after queueing, set to it": late,
        "schedule() calls that scheduled nothing": empty,
        "preemptions in those": empty_preempted,
        "steps scheduled but never completed": lost,
        "steps without forward_s": int((~timed).sum()),
    }
    if timed.any():  # wall time the forward's thread did not run: the machine was shared
        notes["forward wall minus thread time, mean and p99 in seconds"] = [
            round(float(x), 6) for x in (wait_s[timed].mean(), np.quantile(wait_s[timed], 0.99))
        ]
    return {k: v for k, v in notes.items() if v not in (0, [])}
