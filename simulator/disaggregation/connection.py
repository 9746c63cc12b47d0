"""What connects a prefill with a decode cluster: KV sizes, times, who shares what."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.clock import PS_PER_S
from simulator.deployment import Engine, Link
from simulator.disaggregation.channels import CHANNELS, Channel
from simulator.memory import kv_element_bytes
from simulator.model import ModelSpec
from traces.errors import ConfigError


@dataclass(frozen=True, slots=True)
class KVLayout:
    """KV of one model between two engines.

    ``block_bytes`` of a decode engine's block, all its ranks together: a rank that holds a
    KV head which others hold too pulls it for itself. ``reads`` transfers make one of it,
    one after the other, as each rank reads from that many prefill ranks.
    """

    block_bytes: int
    layers: int
    reads: int


def kv_layout(model: ModelSpec, prefill: Engine, decode: Engine) -> KVLayout:
    """Layout for a pair of engines. Raises ConfigError for what cannot be handed over."""
    if any(window is not None for window in model.windows):
        raise ConfigError("clusters: KV of sliding windows cannot be handed over in a simulation")
    if prefill.kv_cache_dtype != decode.kv_cache_dtype:
        raise ConfigError(
            f"engine.kv_cache_dtype: {prefill.kv_cache_dtype} on the prefill side, "
            f"{decode.kv_cache_dtype} on the decode side: blocks cannot be handed over"
        )
    source, ranks = prefill.tensor_parallel_size, decode.tensor_parallel_size
    elements = model.kv_elements(ranks) * model.layers * ranks
    per_token = elements * kv_element_bytes(model, decode)
    heads = 1 if model.mla else model.kv_heads  # a latent is whole on every rank
    holders = min(source, heads)  # prefill ranks that hold different parts
    reads = max(1, holders // min(ranks, heads))
    return KVLayout(per_token * decode.block_size, model.layers, reads)


class Connection:
    """The link of a pair of clusters."""

    def __init__(self, link: Link, layout: KVLayout) -> None:
        self.link = link
        self.layout = layout
        self.setup_ps = round(link.setup_us * layout.reads * 1e-6 * PS_PER_S)
        self.latency_ps = round(link.latency_us * 1e-6 * PS_PER_S)
        self.lease_ps = round(link.lease_s * PS_PER_S)
        self.channels: dict[tuple[int, int], Channel] = {}

    def bytes(self, blocks: int) -> int:
        """KV bytes of so many decode blocks."""
        return blocks * self.layout.block_bytes

    def work_ps(self, blocks: int) -> int:
        """Time on an idle link, set-up and latency apart."""
        return round(self.bytes(blocks) * (PS_PER_S / 1e9) / self.link.bandwidth_gb_s)

    def key(self, source: int, destination: int) -> tuple[int, int]:
        """Which channel a pair of replicas uses."""
        by = self.link.shared_by
        return (
            source if by in ("source", "pair") else -1,
            destination if by in ("destination", "pair") else -1,
        )

    def channel(self, key: tuple[int, int]) -> Channel:
        """The channel so named."""
        if key not in self.channels:
            self.channels[key] = CHANNELS[self.link.contention]()
        return self.channels[key]

    def sent_early_ps(self, work_ps: int, computing_ps: int) -> int:
        """Of a transfer's work, what is done while prefill computed for so long.

        Layer by layer all but the last can go, if the bandwidth suffices; other transfers
        at that time are not looked at.
        """
        if not self.link.layerwise or computing_ps <= 0:
            return 0
        layers = self.layout.layers
        return min(work_ps * (layers - 1) // layers, computing_ps)
