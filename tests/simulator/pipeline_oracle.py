"""A step as a heap of events: the oracle of the max-plus recurrence, written from the rules.

A resource takes the next piece of its program once it is idle and the piece's data are
there. Nothing here knows of the recurrence: stages, lanes and data are spelled out anew.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

from simulator.pipeline import Lanes, Strategy, Work

Key = tuple[Work, int]  # a piece: work and lane


def feeders(strategy: Strategy, work: Work, lane: int, lanes: Lanes) -> list[Key]:
    """The pieces whose data a piece needs."""
    stage, layer, mb = work
    attention, ffn = range(lanes.attention), range(lanes.ffn)
    if stage == "attention":
        if layer == 0:
            return []
        back: list[Key] = [(Work("f2a", layer - 1, mb), i) for i in ffn]
        if strategy.shared:
            back.append((Work("shared", layer - 1, mb), lane))
        return back
    if stage == "shared":
        return [(Work("attention", layer, mb), lane)]
    if stage == "a2f":
        return [(Work("attention", layer, mb), i) for i in attention]
    return [(Work("a2f" if stage == "ffn" else "ffn", layer, mb), lane)]


def play(
    strategy: Strategy,
    layers: int,
    micro_batches: int,
    lanes: Lanes,
    duration_ps: Callable[[Work, int], int],
    latency_ps: Mapping[str, Sequence[int]],
) -> dict[Key, tuple[int, int]]:
    """Start and end of every piece."""
    programs: dict[tuple[str, int], list[Key]] = {}
    for work in strategy.order(layers, micro_batches):
        attends = work.stage in ("attention", "shared")
        for lane in range(lanes.attention if attends else lanes.ffn):
            resource = strategy.resources[work.stage]
            if lanes.one_device and resource in ("attention", "ffn"):
                resource = "device"
            programs.setdefault((resource, lane), []).append((work, lane))
    times: dict[Key, tuple[int, int]] = {}
    ended: set[Key] = set()
    place = dict.fromkeys(programs, 0)
    busy = dict.fromkeys(programs, False)
    heap: list[tuple[int, int, tuple[str, int] | None, Key]] = []
    count = 0

    def start_what_can(now: int) -> None:
        nonlocal count
        for resource, program in programs.items():
            if busy[resource] or place[resource] == len(program):
                continue
            work, lane = program[place[resource]]
            if all(key in ended for key in feeders(strategy, work, lane, lanes)):
                busy[resource] = True
                end = now + duration_ps(work, lane)
                times[work, lane] = (now, end)
                heapq.heappush(heap, (end, count, resource, (work, lane)))
                count += 1

    start_what_can(0)
    while heap:
        now, _, resource, key = heapq.heappop(heap)
        late = latency_ps[key[0].stage][key[1]] if key[0].stage in latency_ps else 0
        if resource is not None:
            busy[resource] = False
            place[resource] += 1
            if late:
                heapq.heappush(heap, (now + late, count, None, key))
                count += 1
        if resource is None or not late:
            ended.add(key)
        start_what_can(now)
    assert len(ended) == sum(map(len, programs.values())), "the programs block each other"
    return times
