"""When each collective of a forward pass began and ended on this rank, and its bytes.

On a CPU a collective returns when it is done, so the host's clock tells its time; part of
it is waiting for the slowest rank. Only without compilation, which would trace this code
away; on a GPU the host runs ahead and nothing is recorded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frontier_hooks.spool import Stream

# method of a group's communicator -> the collective's name
METHODS = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "all_gatherv": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "reduce_scatterv": "reduce_scatter",
    "gather": "gather",
}
COLUMNS = ("stages", "groups", "layers", "bytes", "start_s", "end_s")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)$")


def can_time_collectives(vllm_config: Any, device: Any) -> bool:
    """Whether this rank has collectives whose time the host's clock tells."""
    if str(device).split(":")[0] != "cpu" or vllm_config.compilation_config.mode.name != "NONE":
        return False
    parallel = vllm_config.parallel_config
    return bool(parallel.tensor_parallel_size * parallel.data_parallel_size > 1)


class CollectiveTimer:
    """Writes ``spans.<replica>.<rank>``: one row a forward pass.

    A dummy batch is step -1; its rows come in the order of the dummy batches. The layer is
    null before the first layer and after the last.
    """

    def __init__(self, directory: Path, replica: int, rank: int, model: Any) -> None:
        self._stream = Stream(directory, f"spans.{replica}.{rank}")
        self._layer: int | None = None
        self._calls: list[tuple[str, str, int | None, int, float, float]] = []
        self._watch_layers(model)
        self._watch_groups()

    def begin(self) -> None:
        """A forward pass starts."""
        self._calls.clear()

    def end(self, step: int) -> None:
        """The pass of ``step`` is over."""
        columns = list(zip(*self._calls, strict=True)) or [()] * len(COLUMNS)
        self._stream.write({"step": step, **dict(zip(COLUMNS, columns, strict=True))})
        self._calls.clear()

    def _watch_layers(self, model: Any) -> None:
        for name, module in model.named_modules():
            if found := _LAYER.search(name):
                module.forward = self._in_layer(int(found[1]), module.forward)

    def _in_layer(self, layer: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            self._layer = layer
            result = forward(*args, **named)
            self._layer = None
            return result

        return call

    def _watch_groups(self) -> None:
        from vllm.distributed import parallel_state
        from vllm.v1.worker import dp_utils

        for group in ("tp", "dp", "ep"):  # a dense model has no ep group
            coordinator = getattr(parallel_state, f"_{group.upper()}", None)
            communicator = getattr(coordinator, "device_communicator", None)
            for method, stage in METHODS.items() if communicator is not None else ():
                if hasattr(communicator, method):
                    timed = self._timed(getattr(communicator, method), stage, group)
                    setattr(communicator, method, timed)
        # how the ranks agree on the next pass; older and newer runners do it elsewhere
        if hasattr(dp_utils, "_run_ar"):
            dp_utils._run_ar = self._timed(dp_utils._run_ar, "all_reduce", "dp")

    def _timed(self, collective: Callable[..., Any], stage: str, group: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            start_s = time.monotonic()
            result = collective(*args, **named)
            end_s = time.monotonic()
            size = max(_bytes(args[0] if args else None), _bytes(result))
            self._calls.append((stage, group, self._layer, size, start_s, end_s))
            return result

        return call


def _bytes(tensors: Any) -> int:
    """Size of a tensor or of a list of them; 0 for anything else."""
    if isinstance(tensors, (list, tuple)):
        return sum(_bytes(tensor) for tensor in tensors)
    return int(tensors.nbytes) if hasattr(tensors, "nbytes") else 0
