"""From an even load, as tables are measured under, to the loads that a rank got.

Under an even load every expert gets equally many tokens, so t tokens wake min(E, t k) experts;
drawn at random they wake E (1 - (1 - k/E)^t) on average, fewer by up to a third. Each expert
that stays asleep saves its weights' reading. What that saves is read off the same curve, where
an even load of fewer tokens wakes as few experts::

    seconds(t) = even(t) - [even(t1) - even(t2)],  t1 k = min(E, t k),  t2 k = experts awake

That some experts get more than others once all are awake is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def expected_active(shape: Mapping[str, int | str], tokens: Floats) -> Floats:
    """Experts that one of ``ep`` ranks wakes for ``tokens`` of all ranks, drawn at random.

    >>> expected_active({"experts": 128, "top_k": 4, "ep": 2}, np.array([1.0, 4096.0])).tolist()
    [2.0, 64.0]
    """
    experts, top_k = int(shape["experts"]), int(shape["top_k"])
    awake: Floats = experts * (1 - (1 - top_k / experts) ** tokens)
    return awake / int(shape["ep"])


def waking_tokens(
    shape: Mapping[str, int | str], tokens: Floats, active: Floats
) -> tuple[Floats, Floats]:
    """Tokens whose even load wakes as many experts as ``tokens`` do evenly, and as are awake.

    ``active`` are the experts awake on one of ``ep`` ranks.

    >>> shape, tokens = {"experts": 128, "top_k": 4, "ep": 1}, np.array([1.0, 32.0, 4096.0])
    >>> even, awake = waking_tokens(shape, tokens, expected_active(shape, tokens))
    >>> even.tolist(), awake.round(2).tolist()
    ([1.0, 32.0, 32.0], [1.0, 20.41, 32.0])
    """
    even = np.minimum(tokens, int(shape["experts"]) / int(shape["top_k"]))
    awake = active * int(shape["ep"]) / int(shape["top_k"])
    return even, np.clip(awake, np.minimum(even, 1.0), even)
