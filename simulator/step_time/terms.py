"""Terms of the fitted step time: each a physical cost that grows with the batch.

A term maps a shape to a non-negative number; coefficients are non-negative too, so a
prediction never falls when work is added. ``tokens_upto_k`` and ``tokens_beyond_k`` bend the
cost of the dense layers: below the knee weights are read, above it they are multiplied
(the two regimes of a roofline), with the knee's place left to the data.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.model import MoESpec
from simulator.step_time.base import BatchShape

Term = Callable[[BatchShape], float]

KNEES = (4, 16, 64, 256)

HOST_TERMS: dict[str, Term] = {
    "step": lambda s: 1.0,
    "rows": lambda s: s.rows,
}


def forward_terms(moe: MoESpec | None) -> dict[str, Term]:
    """Terms of the worker's forward, by name; units as in ``BatchShape``."""
    terms: dict[str, Term] = {
        "step": lambda s: 1.0,
        "tokens": lambda s: s.tokens,
        "sampled": lambda s: s.sampled,
        "decodes": lambda s: s.decodes,
        "decode_context": lambda s: s.decode_context,
        "prefill_rows": lambda s: s.rows - s.decodes,
        "prefill_context": lambda s: s.prefill_context,
        "prefill_pairs": lambda s: s.prefill_pairs,
    }
    for knee in KNEES:
        terms[f"tokens_upto_{knee}"] = lambda s, k=knee: min(s.tokens, k)  # type: ignore[misc]
        terms[f"tokens_beyond_{knee}"] = lambda s, k=knee: max(0, s.tokens - k)  # type: ignore[misc]
    if moe is not None:
        terms["active_experts"] = lambda s: active_experts(s.tokens, moe.experts, moe.top_k)
    return terms


def active_experts(tokens: int, experts: int, top_k: int) -> float:
    """Expected experts with at least one token under even routing, per layer.

    E (1 - (1 - k/E)^m): each of m tokens picks k of E experts.

    >>> round(active_experts(4, 16, 2), 3)
    6.621
    """
    return float(experts * (1.0 - (1.0 - top_k / experts) ** tokens))
