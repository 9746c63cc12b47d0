"""What a launch runs: the model's shape, the wire, and one run's batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

STOPPED = "another process of the launch stopped"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A Qwen3-MoE decoder: every layer has routed experts and none is shared."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    inter: int
    vocab: int
    seed: int = 0

    def config(self, max_len: int) -> dict[str, Any]:
        """The HF ``config.json`` of this model."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.inter,
            "moe_intermediate_size": self.inter,
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "vocab_size": self.vocab,
            "max_position_embeddings": max_len,
            "torch_dtype": "float32",
            "tie_word_embeddings": False,
        }


@dataclass(frozen=True, slots=True)
class Wire:
    """A link in one direction: it carries one message at a time and no core works for it.

    A message occupies it for bytes / bandwidth and arrives ``latency_us`` later. Without a
    bandwidth a message is there as soon as it is written.
    """

    bandwidth_gb_s: float | None = None
    latency_us: float = 0.0

    def occupied_ns(self, size: int) -> int:
        """Nanoseconds that ``size`` bytes occupy the link."""
        return round(size / self.bandwidth_gb_s) if self.bandwidth_gb_s else 0

    @property
    def latency_ns(self) -> int:
        return round(self.latency_us * 1000)


@dataclass(frozen=True, slots=True)
class Launch:
    """What holds for all runs of one launch.

    ``copies`` of all weights take turns over the micro-batches, so that none finds its
    weights cached by the one before; 1: all use the same.
    """

    model: ModelShape
    wire: Wire
    ffn_ranks: int
    max_batch: int
    max_micro_batches: int
    max_len: int
    copies: int
    yielding: bool  # fewer cores than processes: let others run while waiting

    @property
    def max_rows(self) -> int:
        """Rows of the largest message: a whole prompt of every request."""
        return self.max_batch * self.max_len


@dataclass(frozen=True, slots=True)
class Run:
    """One closed batch: ``batch`` requests of ``prompt`` tokens generate ``output`` each.

    Prompts have random tokens and lengths from ``prompt`` - ``spread`` to ``prompt``.
    """

    batch: int
    micro_batches: int
    prompt: int
    output: int
    spread: int = 0
    seed: int = 0

    def cut(self) -> list[tuple[int, int]]:
        """Requests ``[low, high)`` of each micro-batch; never more of them than requests.

        >>> Run(batch=7, micro_batches=3, prompt=1, output=1).cut()
        [(0, 3), (3, 5), (5, 7)]
        """
        count = min(self.micro_batches, self.batch)
        small, larger = divmod(self.batch, count)
        ends = [small * (i + 1) + min(i + 1, larger) for i in range(count)]
        return list(zip([0, *ends[:-1]], ends, strict=True))


def turns(runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """Steps of runs in turn, as (step, run): what drifts on the machine meets all runs alike.

    In each round every run makes its next step, in an order of that round.

    >>> list(turns([Run(1, 1, 1, output=2), Run(1, 1, 1, output=1)]))
    [(0, 1), (0, 0), (1, 0)]
    """
    for step in range(max(run.output for run in runs)):
        order = random.Random(f"round {step}").sample(range(len(runs)), len(runs))
        yield from ((step, i) for i in order if step < runs[i].output)
