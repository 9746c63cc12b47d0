"""The scheduler's settings, and the rules that changed between vLLM versions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Resolved settings of one engine's scheduler, under vLLM's names.

    ``num_gpu_blocks`` counts the null block, as vLLM's does. ``windows`` has one entry
    per KV group: its sliding window in tokens, or None for full attention.
    ``max_concurrent_batches`` is 1, or 2 under asynchronous scheduling; with a pipeline, whose
    stages hold ``stage_layers`` each, as many as it has stages, and synchronous. The schedulers of
    ``lock_step_ranks`` data-parallel ranks step together (``simulator/lockstep.py``), and agree
    on going on every ``dp_sync_interval`` steps; the front end chooses among them by their queues
    alone if ``dp_by_queue`` (``simulator/routing/vllm_dp.py``); from a DBO threshold on, 0 for
    never, they run a step in two halves. ``kv_role`` is that of the engine's KV connector:
    kv_producer, kv_consumer, kv_both, or empty without one.
    """

    num_gpu_blocks: int
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduling_policy: str = "fcfs"
    async_scheduling: bool = False
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    windows: tuple[int | None, ...] = (None,)
    stage_layers: tuple[int, ...] = (1,)
    lock_step_ranks: int = 1
    dp_sync_interval: int = 16
    dp_by_queue: bool = False
    dbo_decode_token_threshold: int = 0
    dbo_prefill_token_threshold: int = 0
    kv_role: str = ""

    @property
    def max_concurrent_batches(self) -> int:
        """Batches that may be scheduled but not finished."""
        return 2 if self.async_scheduling else len(self.stage_layers)

    @property
    def drops_stale_tokens(self) -> bool:
        """Tokens in flight for a preempted request are thrown away (``requires_kv_delivery``).

        A producer must not hand over blocks that the preemption freed.
        """
        return self.kv_role in ("kv_producer", "kv_both")

    @property
    def defers_frees(self) -> bool:
        """No block is freed that a step in flight may write (``defer_block_free``).

        A consumer's load into such a block would not be ordered after that write.
        """
        return self.async_scheduling and self.kv_role in ("kv_consumer", "kv_both")


def early_rules(engine_version: str | None) -> dict[str, int | bool]:
    """Settings of data-parallel ranks that 0.19.0 had as constants, and versions before it.

    >>> early_rules("0.19.0"), early_rules("0.32.0+cpu")
    ({'dp_by_queue': True, 'dp_sync_interval': 32}, {})
    """
    numbers = [int(n) for n in (engine_version or "").split("+")[0].split(".")[:2] if n.isdigit()]
    return {"dp_by_queue": True, "dp_sync_interval": 32} if [0] <= numbers < [0, 20] else {}
