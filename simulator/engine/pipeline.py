"""When the pieces of a pipelined step end: a max-plus recurrence (pipeline/graph.py)."""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.layout import Pipeline, cost_of, end_of, piece_of


@compiled
def last_end_of(p: Pipeline) -> int:
    """End of the last piece; all ends are left behind."""
    end = 0
    for k in range(p.pieces):
        piece = piece_of(p, k)
        first, second = end_of(p, piece.first).value, end_of(p, piece.second).value
        end = (first if first > second else second) + cost_of(p, piece.cost).value
        end_of(p, k + 1).value = end
    return end
