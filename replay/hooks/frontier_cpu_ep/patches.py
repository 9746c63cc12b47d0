"""The two pieces: collectives over unequal parts, and experts that are not on this rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

Tensor = Any  # torch is not there when types are checked


def patch() -> None:
    """Add what CpuCommunicator lacks and have the experts look at their map."""
    for method in (all_gatherv, reduce_scatterv):
        if method.__name__ not in vars(CpuCommunicator):
            setattr(CpuCommunicator, method.__name__, method)
    apply = CPUUnquantizedExperts.apply
    if not hasattr(apply, "__wrapped__"):
        CPUUnquantizedExperts.apply = _with_expert_map(apply)


def all_gatherv(
    self: Any, input_: Tensor | list[Tensor], dim: int = 0, sizes: list[int] | None = None
) -> Tensor | list[Tensor]:
    """Concatenate every rank's rows; rank ``r`` has ``sizes[r]`` of them.

    A list of ``(rows, columns)`` tensors travels as one message: rows are joined as bytes.
    """
    if dim != 0:
        raise NotImplementedError("all_gatherv gathers along dimension 0 only")
    if not isinstance(input_, list):
        return _gather_rows(self, input_, sizes)
    parts = [tensor.contiguous().view(torch.uint8) for tensor in input_]
    rows = _gather_rows(self, torch.cat(parts, dim=1), sizes)
    gathered = rows.split([part.shape[1] for part in parts], dim=1)
    return [
        part.contiguous().view(tensor.dtype) for part, tensor in zip(gathered, input_, strict=True)
    ]


def reduce_scatterv(
    self: Any, input_: Tensor, dim: int = -1, sizes: list[int] | None = None
) -> Tensor:
    """Sum ``input_`` over the ranks, in float32; rank ``r`` keeps its ``sizes[r]`` rows.

    Each rank sends each other one only the rows that one keeps.
    """
    if dim != 0:
        raise NotImplementedError("reduce_scatterv scatters along dimension 0 only")
    world = self.world_size
    sizes = sizes or [input_.shape[0] // world] * world
    kept = sizes[self.rank_in_group]
    received = input_.new_empty((world * kept, *input_.shape[1:]))
    dist.all_to_all_single(
        received, input_.contiguous(), [kept] * world, sizes, group=self.device_group
    )
    by_rank = received.view(world, kept, *input_.shape[1:])
    return by_rank.sum(dim=0, dtype=torch.float32).to(input_.dtype)


def _gather_rows(communicator: Any, rows: Tensor, sizes: list[int] | None) -> Tensor:
    world = communicator.world_size
    own = rows.shape[0]
    sizes = sizes or [own] * world
    gathered = rows.new_empty((sum(sizes), *rows.shape[1:]))
    copies = torch.cat([rows] * world)  # gloo's own all_gather wants equal sizes
    dist.all_to_all_single(gathered, copies, sizes, [own] * world, group=communicator.device_group)
    return gathered


def _with_expert_map(apply: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``apply``, whose kernel takes every id for a local one.

    The (token, choice) pairs whose expert is here become rows of their own with one choice
    each; what they yield is added up by token.
    """

    @wraps(apply)
    def on_local_pairs(
        self: Any,
        output: Tensor,
        hidden_states: Tensor,
        w1: Tensor,
        w2: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        activation: Any,
        global_num_experts: int,
        expert_map: Tensor | None,
        *rest: Any,
        **named: Any,
    ) -> None:
        def run(out: Tensor, rows: Tensor, weights: Tensor, ids: Tensor) -> None:
            apply(
                self, out, rows, w1, w2, weights, ids, activation,
                global_num_experts, None, *rest, **named,
            )  # fmt: skip

        if expert_map is None:
            run(output, hidden_states, topk_weights, topk_ids)
            return
        local = expert_map[topk_ids.long()]
        token, choice = torch.nonzero(local >= 0, as_tuple=True)
        total = torch.zeros(output.shape, dtype=torch.float32)
        if len(token):
            rows = hidden_states[token]
            out = torch.empty_like(rows)
            weights, ids = topk_weights[token, choice], local[token, choice]
            run(out, rows, weights[:, None].contiguous(), ids[:, None].to(topk_ids.dtype))
            total.index_add_(0, token, out.float())
        output.copy_(total)

    return on_local_pairs
