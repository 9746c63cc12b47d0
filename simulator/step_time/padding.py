"""CUDA graphs are captured for some batch sizes; a batch runs as the next larger one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.deployment import Engine


def padded_tokens(engine: Engine, most: int) -> npt.NDArray[np.int64]:
    """Tokens the forward runs on for 0..``most`` scheduled: the next CUDA graph size, if any.

    vLLM's ``cudagraph_dispatcher``: a batch larger than the largest graph runs as it is.
    """
    padded = np.arange(most + 1)
    sizes = np.array(sorted(engine.graph_sizes()), np.int64)
    if len(sizes):
        inside = padded <= sizes[-1]
        padded[inside] = sizes[np.searchsorted(sizes, padded[inside])]
        padded[0] = 0
    return np.minimum(padded, most)
