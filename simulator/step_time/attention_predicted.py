"""Attention of a shape whose mixed batches were not measured, from fitted operators.

    seconds(chunk, decodes) = prefill(chunk) + decode(decodes) - the shortest kernel

Chunk and decodes share one kernel, so the launch counts once; nothing else is taken to
overlap. Decodes of unequal contexts cost as many of their mean. The axes are ladders, fine
enough that straight lines between them stay within 1 % of the work that they stand for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from simulator.deployment import Engine
from simulator.model import ModelSpec
from simulator.operators import Prediction
from simulator.step_time.attention_grid import AttentionGrid
from simulator.step_time.kernel_types import KernelTypes
from simulator.step_time.layers import AttentionCall
from simulator.step_time.prices import SUPPLY
from simulator.step_time.unmeasured import Unmeasured
from traces.errors import ConfigError

Floats = npt.NDArray[np.float64]


def ladder(first: int, last: int, per_octave: int) -> Floats:
    """0, then whole numbers from ``first`` to ``last`` in equal ratios.

    >>> ladder(16, 100, 1).tolist()
    [0.0, 16.0, 32.0, 64.0, 100.0]
    """
    first = min(first, last)
    steps = np.arange(0, np.log2(last / first), 1 / per_octave)
    return np.concatenate([[0.0], np.unique(np.r_[np.round(first * 2.0**steps), last])])


def predicted_grid(
    unmeasured: Unmeasured, types: KernelTypes, call: AttentionCall, model: ModelSpec,
    engine: Engine,
) -> AttentionGrid:  # fmt: skip
    """The grid of one attention shape. Raises ConfigError if the family was not measured."""
    longest = engine.max_model_len or model.max_len
    axes = (
        ladder(16, engine.max_num_batched_tokens, 4),
        ladder(64, longest, 1),
        ladder(1, engine.max_num_seqs, 4),
        ladder(16, longest, 2),
    )
    prefill = _ask(unmeasured, types, call, "prefill", axes[0][1:], axes[1])
    decode = _ask(unmeasured, types, call, "decode", axes[2][1:], axes[3])
    chunk = np.zeros((len(axes[0]), len(axes[1])))
    chunk[1:] = prefill.seconds.reshape(-1, len(axes[1]))
    decodes = np.zeros((len(axes[2]), len(axes[3])))
    decodes[1:] = decode.seconds.reshape(-1, len(axes[3]))
    shortest = min(chunk[1:].min(), decodes[1:].min())
    seconds = chunk[:, :, None, None] + decodes
    seconds[1:, :, 1:] -= shortest
    inside = 1 - np.concatenate([prefill.extrapolated, decode.extrapolated]).mean()
    spread = np.zeros((2, len(axes[2]), len(axes[3])))
    return AttentionGrid(axes, seconds, float(inside), spread, np.inf)


def _ask(
    unmeasured: Unmeasured, types: KernelTypes, call: AttentionCall, phase: str, first: Floats,
    contexts: Floats,
) -> Prediction:  # fmt: skip
    """Prefill of one chunk of ``first`` tokens, or ``first`` decodes, after each context."""
    name = f"{'mla' if call.family == 'mla' else 'attention'}_{phase}"
    shape: dict[str, int | str] = {
        "heads": call.heads, "dtype": types.of(name), "kv_dtype": types.cache,
    }  # fmt: skip
    if call.family == "gqa":
        shape |= {"kv_heads": call.kv_heads, "head_dim": call.head_dim, "window": call.window}
    one = np.ones(len(first) * len(contexts))
    many = np.repeat(first, len(contexts))
    batch, query = (one, many) if phase == "prefill" else (many, one)
    sizes = {
        "batch": batch, "query_tokens": query, "context_tokens": np.tile(contexts, len(first)),
    }  # fmt: skip
    layer = f"{name} of window {call.window}" if call.window else name
    found = unmeasured.predict(layer, name, shape, sizes)
    if found is None:
        raise ConfigError(
            f"operators: no {name} kernel in {types.of(name)} with a cache in {types.cache}; "
            + SUPPLY
        )
    return found
