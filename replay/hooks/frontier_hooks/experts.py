"""Tokens per expert, layer and forward pass, from the routers' own capture hook."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np


def routers(model: Any) -> list[tuple[int, Any]]:
    """The MoE layers' routers that can report, as (model layer, router), by layer.

    Kernels that route inside themselves (some GPU backends) do not report; then the list is
    right but no tokens are counted.
    """
    found = [
        (int(module.layer_id), module.router)
        for module in model.modules()
        if hasattr(module, "layer_id")
        and hasattr(getattr(module, "router", None), "set_capture_fn")
        and hasattr(module.router, "global_num_experts")
    ]
    return sorted(found, key=lambda pair: pair[0])


class ExpertCounter:
    """Counts the routed (logical) expert ids of one forward pass.

    On a CPU the ids are kept and counted at the end in one go. On a GPU a fixed device
    tensor is added to, which also works inside CUDA graphs (their padding rows are then
    counted too); this half is untested on a GPU.
    """

    def __init__(self, found: list[tuple[int, Any]], device: Any) -> None:
        self.layers = [layer for layer, _ in found]
        self._experts = max(int(router.global_num_experts) for _, router in found)
        self._on_device = str(device).split(":")[0] != "cpu"
        self._ids: list[tuple[int, Any]] = []
        if self._on_device:
            import torch

            # one more column takes the ids below zero that mark padding
            shape = (len(found), self._experts + 1)
            self._counts = torch.zeros(shape, dtype=torch.int64, device=device)
            self._host_shape = (len(found), self._experts)
        for index, (_, router) in enumerate(found):
            keep = self._add if self._on_device else self._keep
            router.set_capture_fn(_both(router.capture_fn, partial(keep, index)))

    def reset(self) -> None:
        """Forget what ran outside a step (warm-up, dummy batches)."""
        self._ids.clear()
        if self._on_device:
            self._counts.zero_()

    def take(self) -> Any:
        """Counts of the pass, ``(layers, experts)`` integers; None if no router reported."""
        if self._on_device:
            import torch

            # pinned: a copy to pageable memory would make the host wait for the pass
            host = torch.empty(self._host_shape, dtype=torch.int64, pin_memory=True)
            return host.copy_(self._counts[:, : self._experts], non_blocking=True)
        if not self._ids:
            return None
        ids = [layer_ids.numpy() for _, layer_ids in self._ids]  # each (tokens, top_k)
        first = np.repeat([index * self._experts for index, _ in self._ids], [len(i) for i in ids])
        flat = (np.concatenate(ids) + first[:, None]).reshape(-1)
        counts = np.bincount(flat, minlength=len(self.layers) * self._experts)
        self._ids.clear()
        return counts.reshape(len(self.layers), self._experts)

    def _keep(self, index: int, ids: Any) -> None:
        self._ids.append((index, ids))

    def _add(self, index: int, ids: Any) -> None:
        import torch

        flat = ids.reshape(-1).to(torch.int64)
        flat = torch.where(flat < 0, self._experts, flat)
        self._counts[index].scatter_add_(0, flat, torch.ones_like(flat))


def _both(first: Any, second: Any) -> Any:
    if first is None:
        return second

    def call(ids: Any) -> None:
        first(ids)
        second(ids)

    return call
