"""From an even load, as tables are measured under, to one that routers draw at random.

Under an even load every expert gets equally many tokens, so t tokens wake min(E, t k) experts;
drawn at random they wake E (1 - (1 - k/E)^t) on average, fewer by up to a third. Each expert
that stays asleep saves its weights' reading. What that saves is read off the same curve, where
an even load of fewer tokens wakes as few experts::

    seconds(t) = even(t) - [even(t1) - even(t2)],  t1 k = min(E, t k),  t2 k = E (1 - (1 - k/E)^t)

That some experts get more than others once all are awake is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def waking_tokens(shape: Mapping[str, int | str], tokens: Floats) -> tuple[Floats, Floats]:
    """Tokens whose even load wakes as many experts as ``tokens`` do evenly, and at random.

    >>> even, random = waking_tokens({"experts": 128, "top_k": 4}, np.array([1.0, 32.0, 4096.0]))
    >>> even.tolist(), random.round(2).tolist()
    ([1.0, 32.0, 32.0], [1.0, 20.41, 32.0])
    """
    each = int(shape["experts"]) / int(shape["top_k"])
    drawn = each * (1 - (1 - 1 / each) ** tokens)
    return np.minimum(tokens, each), np.maximum(drawn, 1.0)
