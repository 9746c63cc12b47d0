"""Terms of the fitted step time: each a physical cost that grows with the batch.

A term maps a shape to a non-negative number; coefficients are non-negative too, so a
prediction never falls when work is added. ``tokens_upto_k`` and ``tokens_beyond_k`` bend the
cost of the dense layers: below the knee weights are read, above it they are multiplied
(the two regimes of a roofline), with the knee's place left to the data.
"""

from __future__ import annotations

from simulator.model import MoESpec
from simulator.step_time.functions import ActiveExperts, Beyond, Constant, Linear, UpTo

Term = Constant | Linear | UpTo | Beyond | ActiveExperts

KNEES = (4, 16, 64, 256)

HOST_TERMS: dict[str, Term] = {"step": Constant(), "rows": Linear("rows")}


def forward_terms(moe: MoESpec | None, *, together: bool = False) -> dict[str, Term]:
    """Terms of the worker's forward, by name; units as in ``BatchShape``.

    ``together``: of ranks in lock-step, whose experts take the tokens of all.
    """
    features = (
        "tokens", "sampled", "decodes", "decode_context", "prefill_rows", "prefill_context",
        "prefill_pairs",
    )  # fmt: skip
    terms: dict[str, Term] = {"step": Constant(), **{name: Linear(name) for name in features}}
    for knee in KNEES:
        terms[f"tokens_upto_{knee}"] = UpTo("tokens", knee)
        terms[f"tokens_beyond_{knee}"] = Beyond("tokens", knee)
    if moe is not None:
        terms["active_experts"] = ActiveExperts(moe.experts, moe.top_k)
    if together:
        terms["engine_tokens"] = Linear("engine_tokens")
        for knee in KNEES[1:]:
            terms[f"engine_tokens_upto_{knee}"] = UpTo("engine_tokens", knee)
    return terms
