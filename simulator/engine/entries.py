"""What Python calls: the arguments are numbers, addresses among them."""

from __future__ import annotations

from simulator.engine.advance import tell
from simulator.engine.layout import (
    model_at,
    pipeline_at,
    replica_of,
    shape_of,
    winner_of,
    world_at,
)
from simulator.engine.pipeline import last_end_of
from simulator.engine.quiet import settle
from simulator.engine.run import play, run_to
from simulator.engine.schedule import abort, add, notify, schedule, update
from simulator.engine.times import predict
from simulator.engine.turn import send


def evaluate(model: int) -> None:
    """Predict the times of a step of the model's shape; without word of others it steps alone."""
    m = model_at(model)
    shape = shape_of(m, 0)
    shape.prefill_rows = shape.rows - shape.decodes
    if not shape.engine_tokens:
        shape.engine_tokens = shape.most_tokens = shape.tokens
        shape.engine_prefill = shape.prefill_tokens
        shape.most_rows = shape.rows
    predict(m)


def last_end(pipeline: int) -> int:
    """When the last piece of a pipelined step ends, in picoseconds from its start."""
    return last_end_of(pipeline_at(pipeline))


def arrive(world: int, e: int, i: int, at_ps: int) -> int:
    """Request ``i`` is sent to replica ``e``; returns the time of the next event of all."""
    w = world_at(world)
    send(w, replica_of(w, e), i, at_ps)
    play(w, e - e % w.ranks)
    return replica_of(w, winner_of(w, 1).value).next_ps


def report(world: int, e: int, i: int, at_ps: int) -> int:
    """The KV connector of replica ``e`` reports request ``i``; returns as ``arrive`` does."""
    w = world_at(world)
    tell(w, replica_of(w, e), i, at_ps)
    play(w, e - e % w.ranks)
    return replica_of(w, winner_of(w, 1).value).next_ps


def run(world: int, limit_ps: int, events: int, in_order: bool) -> int:
    """See ``run_to``."""
    return run_to(world_at(world), limit_ps, events, in_order)


def settle_all(world: int, replicas: int) -> None:
    """Bring all requests up to date, in the middle of a run."""
    w = world_at(world)
    for e in range(replicas):
        s = replica_of(w, e)
        if s.quiet:
            settle(w, s)


def add_request(world: int, i: int) -> None:
    """Request ``i`` enters the waiting queue of the only replica."""
    w = world_at(world)
    add(w, replica_of(w, 0), i)


def plan_step(world: int) -> int:
    """The only replica plans a step; returns its slot."""
    w = world_at(world)
    return schedule(w, replica_of(w, 0))


def end_step(world: int, now_ps: int) -> None:
    """The only replica's oldest step ended."""
    w = world_at(world)
    update(w, replica_of(w, 0), now_ps)


def notify_request(world: int, i: int) -> None:
    """The KV of request ``i`` has come to, or been taken from, the only replica."""
    w = world_at(world)
    notify(w, replica_of(w, 0), i)


def abort_request(world: int, i: int) -> None:
    """Request ``i`` leaves the only replica."""
    w = world_at(world)
    abort(w, replica_of(w, 0), i)
