"""When the pieces of a pipelined step end: a max-plus recurrence (pipeline/graph.py)."""

from __future__ import annotations

from simulator.engine.build import compiled
from simulator.engine.layout import Pipeline, piece_at, time_at


@compiled
def last_end_of(p: Pipeline) -> int:
    """End of the last piece; all ends are left behind."""
    end = 0
    # read once: an end is written somewhere in memory, for all the compiler knows into ``p``
    pieces, costs, ends = p.pieces_at, p.costs_at, p.ends_at
    for k in range(p.pieces):
        piece = piece_at(pieces, k)
        first, second = end, time_at(ends, piece.second).value
        if piece.first != k:  # mostly it is the piece before, whose end is at hand
            first = time_at(ends, piece.first).value
        end = (first if first > second else second) + time_at(costs, piece.cost).value
        time_at(ends, k + 1).value = end
    return end
