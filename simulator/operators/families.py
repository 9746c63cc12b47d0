"""The families by the name in the ``operator`` column. One family a file."""

from __future__ import annotations

from collections.abc import Callable

from simulator.operators.attention_decode import AttentionDecode
from simulator.operators.attention_mixed import AttentionMixed
from simulator.operators.attention_prefill import AttentionPrefill
from simulator.operators.base import Family
from simulator.operators.collectives import AllToAll, Collective
from simulator.operators.grouped_gemm import GroupedGemm
from simulator.operators.linear import Linear
from simulator.operators.mla import Mla
from simulator.operators.tokenwise import Router, Tokenwise
from traces.errors import ConfigError, nearest

OPERATORS: dict[str, Callable[[], Family]] = {
    "linear": Linear,
    "attention_prefill": AttentionPrefill,
    "attention_decode": AttentionDecode,
    "attention_mixed": AttentionMixed,
    "mla_prefill": Mla,
    "mla_decode": Mla,
    "grouped_gemm": GroupedGemm,
    "router": Router,
    "elementwise": Tokenwise,
    "sampling": Tokenwise,
    "all_reduce": Collective,
    "all_gather": Collective,
    "reduce_scatter": Collective,
    "all_to_all": AllToAll,
    "send_recv": Collective,
}


def family_named(name: str) -> Family:
    """A family by its ``operator`` name; raises ConfigError naming the known ones."""
    if name not in OPERATORS:
        raise ConfigError(f"unknown operator {name!r}{nearest(name, OPERATORS)}")
    return OPERATORS[name]()
