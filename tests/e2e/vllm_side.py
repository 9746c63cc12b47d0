"""vLLM's own scheduler objects behind the interface of ``scheduler_world``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fake_connector import FakeConnector
from scheduler_world import Arrival, Case
from vllm.config import (
    CacheConfig,
    KVTransferConfig,
    ModelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.config import SchedulerConfig as VllmSchedulerConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from simulator.scheduling import SchedulerConfig
from simulator.scheduling.request import Remote

MODEL = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "intermediate_size": 128, "vocab_size": 1024, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip


@cache
def model_config(directory: str, max_model_len: int) -> ModelConfig:
    """A model configuration without a model."""
    Path(directory, "config.json").write_text(json.dumps(MODEL))
    return ModelConfig(
        model=directory, skip_tokenizer_init=True, max_model_len=max_model_len, dtype="float32"
    )


def _spec(window: int | None, block: int) -> FullAttentionSpec | SlidingWindowSpec:
    shape: dict[str, Any] = {
        "block_size": block, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float32,
    }  # fmt: skip
    if window is None:
        return FullAttentionSpec(**shape)
    return SlidingWindowSpec(**shape, sliding_window=window)


class VllmSide:
    """vLLM's Scheduler or AsyncScheduler for one case, or a subclass ``base`` of it."""

    def __init__(self, case: Case, directory: str, base: type[Scheduler] | None = None) -> None:
        config = case.config
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.seen: Counter[str] = Counter()
        vllm_config = _vllm_config(config, directory)
        groups = [
            KVCacheGroupSpec([f"layer{i}"], _spec(w, config.block_size))
            for i, w in enumerate(config.windows)
        ]
        kv = KVCacheConfig(
            num_blocks=config.num_gpu_blocks, kv_cache_tensors=[], kv_cache_groups=groups,
            prefix_cache_retention_interval=0,
        )  # fmt: skip
        vllm_config.cache_config.num_gpu_blocks = config.num_gpu_blocks
        base = base or (AsyncScheduler if config.async_scheduling else Scheduler)
        side = self

        class Watched(base):  # type: ignore[misc, valid-type]
            def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
                side.preempted.append(request.request_id)
                super()._preempt_request(request, *args, **kwargs)

        self.preempted: list[str] = []
        self.kept: set[str] = set()  # their blocks are, when they finish
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(config.block_size, sha256)
        with set_current_vllm_config(vllm_config):
            self.scheduler = Watched(
                vllm_config=vllm_config, kv_cache_config=kv, block_size=config.block_size,
                structured_output_manager=StructuredOutputManager(vllm_config), log_stats=True,
            )  # fmt: skip

    def add(self, arrival: Arrival) -> None:
        self.outputs[arrival.name] = arrival.output
        self.scheduler.add_request(
            Request(
                request_id=arrival.name,
                prompt_token_ids=list(arrival.prompt),
                sampling_params=SamplingParams(max_tokens=len(arrival.output), ignore_eos=True),
                pooling_params=None,
                arrival_time=float(arrival.arrival),
                priority=arrival.priority,
                block_hasher=self.hasher,
            )
        )
        if arrival.remote:
            key = "do_remote_prefill" if arrival.remote == Remote.TO_LOAD else "do_remote_decode"
            self.scheduler.requests[arrival.name].kv_transfer_params = {key: True}
            self.kept |= {arrival.name} if arrival.remote == Remote.TO_KEEP else set()

    def moving(self) -> list[str]:
        connector = self.scheduler.connector
        if not isinstance(connector, FakeConnector):
            return []
        begun, connector.begun = connector.begun, []
        return begun

    def abort(self, name: str) -> None:
        if name in self.scheduler.requests:
            self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    def has_requests(self) -> bool:
        return self.scheduler.get_num_unfinished_requests() > 0

    def schedule(self) -> tuple[Any, tuple[Any, ...], bool]:
        self.preempted = []
        before = [r.request_id for r in self.scheduler.running]
        output = self.scheduler.schedule()
        rows = list(output.num_scheduled_tokens.items())
        running = [r.request_id for r in self.scheduler.running]
        if self.scheduler.policy.value == "priority":
            # A victim that stood before a request that ran had been scheduled already.
            ran = [before.index(name) for name, _ in rows if name in before]
            self.seen["priority victim already scheduled"] += any(
                before.index(v) < max(ran, default=-1) for v in self.preempted if v in before
            )
        self.seen["preemption"] += len(self.preempted)
        counts = self.scheduler.get_request_counts()
        free = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        record = (rows, list(self.preempted), free, running, counts[1])
        emits = {name: not self.scheduler.requests[name].is_prefill_chunk for name, _ in rows}
        return (output, emits), record, bool(rows)

    def update(self, batch: Any, moved: Sequence[str]) -> None:
        output, emits = batch
        names = list(output.num_scheduled_tokens)
        sampled = []
        for name in names:
            request = self.scheduler.requests.get(name)
            done = request.num_output_tokens if request else 0
            sampled.append([self.outputs[name][done]] if emits[name] and request else [])
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: i for i, name in enumerate(names)},
                sampled_token_ids=sampled,
                logprobs=None,
                prompt_logprobs_dict={},
                pooler_output=[],
                kv_connector_output=KVConnectorOutput(
                    # in an order, which sets of names have not
                    finished_sending=dict.fromkeys(n for n in moved if n in self.kept),  # type: ignore[arg-type]
                    finished_recving={name for name in moved if name not in self.kept},
                )
                if moved
                else None,
            ),
        )


def _vllm_config(config: SchedulerConfig, directory: str) -> VllmConfig:
    scheduler = VllmSchedulerConfig(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=config.max_model_len,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=config.long_prefill_token_threshold_adaptive,
        enable_chunked_prefill=config.enable_chunked_prefill,
        policy=config.scheduling_policy,
        scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
        watermark=config.watermark,
        async_scheduling=config.async_scheduling,
        is_encoder_decoder=False,
    )
    transfer = None
    if config.kv_role:
        transfer = KVTransferConfig(
            kv_connector=FakeConnector.__name__,
            kv_connector_module_path=FakeConnector.__module__,
            kv_role=config.kv_role,
        )
    cache_config = CacheConfig(
        block_size=config.block_size,
        enable_prefix_caching=config.enable_prefix_caching,
        gpu_memory_utilization=0.9,
    )
    vllm_config = VllmConfig(
        scheduler_config=scheduler,
        model_config=model_config(directory, config.max_model_len),
        cache_config=cache_config,
        kv_transfer_config=transfer,
    )
    # The CPU platform switches these; the rules under test are those of any platform.
    vllm_config.parallel_config.pipeline_parallel_size = len(config.stage_layers)
    vllm_config.scheduler_config.async_scheduling = config.async_scheduling
    vllm_config.scheduler_config.enable_chunked_prefill = config.enable_chunked_prefill
    vllm_config.cache_config.block_size = config.block_size
    vllm_config.cache_config.enable_prefix_caching = config.enable_prefix_caching
    return vllm_config
