"""Who waited for whom: the idle time of every resource in a step, by what it was waiting for.

A resource is idle from the end of one piece of work to the start of its next. That next
piece was on its way meanwhile, through the stages before it; each moment of the wait goes to
the stage it was in then, queueing there included. After its last piece a resource idles for
``end``, the rest of the step.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.pipeline.graph import Pipeline

END = "end"


class Idle(NamedTuple):
    """Busy and idle time of one lane of a resource in a step, picoseconds."""

    resource: str
    lane: int
    busy_ps: int
    waited_ps: dict[str, int]  # by stage, and ``end``


def idle_times(pipeline: Pipeline) -> list[Idle]:
    """Idle time of each resource and lane, for the step last evaluated."""
    spans = dict(zip((p.arrived for p in pipeline.work), pipeline.spans(), strict=True))
    needs = {p.arrived: p.needs for p in pipeline.work}
    whole_ps = max(span.end_ps for span in spans.values())
    free_ps: dict[tuple[str, int], int] = {}
    found: dict[tuple[str, int], Idle] = {}
    for piece, span in spans.items():
        key = (span.resource, span.lane)
        idle = found.setdefault(key, Idle(*key, 0, {}))
        begin, until, at = free_ps.get(key, 0), span.start_ps, piece
        while until > begin:  # back along the pieces that brought the data
            at = max(needs[at], key=lambda p: spans[p].arrived_ps)
            since = max((spans[p].arrived_ps for p in needs[at]), default=0)
            stage, since = spans[at].work.stage, max(since, begin)
            if until > since:
                idle.waited_ps[stage] = idle.waited_ps.get(stage, 0) + until - since
            until = since
        free_ps[key] = span.end_ps
        found[key] = idle._replace(busy_ps=idle.busy_ps + span.end_ps - span.start_ps)
    for key, idle in found.items():
        if rest := whole_ps - free_ps[key]:
            idle.waited_ps[END] = rest
    return list(found.values())
