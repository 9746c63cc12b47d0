"""The records of the engine.

Times are int64 picoseconds, negative before they happened; the rest are counts, indices and
flags. A request is in one list at a time (a replica's inbox, waiting queue or running
list), so ``next`` and ``prev`` serve them all; ``NONE`` ends a list.
"""

from __future__ import annotations

from simulator.engine.records import Record, at, of, small

NONE = -1
NO_BLOCK = 0
DRAWS_APART = 7919  # a prime: replicas begin at different draws of the expert loads
OK, CORRUPT, STUCK, PREEMPTED_FOR_EVER = range(4)  # World.error


class Request(Record):
    """What is asked for, how far it is, and what became of it (scheduling/request.py)."""

    arrival_ps: int
    due_ps: int  # at the engine's input queue
    queued_ps: int
    first_scheduled_ps: int
    first_token_ps: int
    finished_ps: int
    shared_at: int
    prompt: small
    max_tokens: small
    priority: small
    rank: small  # order of the names, for ties
    shared: small  # leading blocks that another request may have too
    replica: small
    status: small
    output: small
    computed: small
    placeholders: small
    in_flight: small
    stale: small
    remote: small
    prefilling: small
    fence: small  # its blocks are free when this many steps of its replica have ended
    preemptions: small
    cached_tokens: small
    held: small  # KV blocks
    cached: small  # of these, blocks in the prefix cache
    hit: small  # of these, shared ones
    left: small  # own blocks that lie in the free queue
    left_at: small  # their place there
    next: small
    prev: small


class Shared(Record):
    """A leading block of a request: its content, and the KV block it holds."""

    code: small
    block: small


class Block(Record):
    """A KV block that others may hit."""

    references: small
    code: small
    next: small  # of the same content
    place: small  # in the free queue


class Number(Record):
    """An element of a list of numbers."""

    value: small


class Stage(Record):
    """A pipeline stage of a replica: when it is free, and the layers it holds."""

    free_ps: int
    layers: int


class Finish(Record):
    """A request that finished."""

    request: int
    replica: int
    at_ps: int


class Load(Record):
    """A request whose blocks are reserved, ``blocks`` of them for KV that is to come."""

    request: int
    replica: int
    at_ps: int
    blocks: int


class Row(Record):
    """A request in a step: ``[computed, computed + tokens)`` are run."""

    replica: small
    step: small
    request: small
    tokens: small
    computed: small
    emits: small  # the step samples a token for it
    stale: small  # it was preempted since


class Step(Record):
    """A step in flight, and the queue as scheduling left it."""

    rows_at: int
    preempted_at: int
    replica: int
    step: int
    start_ps: int
    end_ps: int
    forward_ps: int
    gap_ps: int
    quiet: int  # nothing but decodes: no rows are written
    dummy: int  # of a lock-step rank without work
    rows: int
    tokens: int
    prefill_tokens: int
    preempted: int
    running: int
    waiting: int
    free_blocks: int


class Replica(Record):
    """A scheduler, its KV memory, its clock, and the quiet stretch it is in (quiet.py)."""

    index: int
    shape_at: int  # of a lock-step rank's batch
    running_at: int
    steps_at: int
    phase_at: int
    blocks_at: int
    holders_at: int
    queue_at: int
    # clock
    next_ps: int  # its next event
    ending: int  # which is the end of a step, else a wake-up
    host_free_ps: int
    device_free_ps: int
    stages_at: int  # when each pipeline stage is free
    inbox_first: int
    inbox_last: int
    unfinished: int
    steps: int
    begun: int  # steps with work, ended or in flight
    stepping: int  # of lock-step ranks, the first's: they are in a wave,
    wave: int  # whose so many-th step this is
    empty: int  # steps without a token in a row
    flight: int  # steps in flight, of which the oldest is in slot ``first_slot``
    first_slot: int
    dormant: int  # nothing to run until it is notified or a request arrives
    # scheduler
    running: int
    waiting: int  # of them
    holding: int  # hold blocks as their KV comes or came, and stand first in the queue,
    holding_last: int  # up to this one;
    loaded: int  # of some it came
    kept: int  # finished requests that hold their blocks
    scheduled_steps: int  # with tokens
    ended_steps: int
    deferred_first: int  # aborted requests whose blocks a step in flight may write
    deferred_last: int
    waiting_first: int
    waiting_last: int
    blocked: int  # the first in the queue wants more blocks than there are
    capped_chunks: int
    # KV memory
    free_blocks: int
    blanks: int
    evictions: int
    queue_first: int
    queue_end: int
    spare_block: int
    blocks_used: int
    # quiet stretch
    quiet: int
    quiet_left: int  # steps until it ends
    scheduled: int  # steps of it scheduled,
    ended: int  # and ended
    context: int  # over the rows: sum of computed tokens, of their squares, and the most
    context_sq: int
    context_max: int
    quiet_steps: int


class Shape(Record):
    """A step's shape, field by field that of ``step_time.base.BatchShape``."""

    tokens: int
    rows: int
    sampled: int
    decodes: int
    decode_context: int
    decode_context_sq: int
    decode_context_max: int
    prefill_rows: int
    prefill_tokens: int
    prefill_tokens_sq: int
    prefill_context: int
    prefill_context_sq: int
    prefill_context_max: int
    prefill_pairs: int
    engine_tokens: int
    engine_prefill: int
    most_tokens: int
    most_rows: int
    draw: int
    halved: int


class Feature(Record):
    """A field of the shape, by number."""

    value: int


class Coefficient(Record):
    """An element of the model's numbers."""

    value: float


class Term(Record):
    """A summand of a step's time (times.py)."""

    part: int
    kind: int
    feature: int
    other: int
    start: int  # of its numbers, the coefficient first
    knee: int
    columns: int  # of a table: points of its axes
    lines: int
    planes: int
    cubes: int
    logs: int
    halves: int  # it runs on half the tokens, twice, where a step is halved
    spent: float  # seconds so far
    beyond: int  # steps so far that lay outside of it


class StagePrice(Record):
    """Prices a stage of a pipelined step for layers of a kind, by a model of its own."""

    model: int  # its address
    stage: small
    kind: small
    lane: small
    beside: small  # it takes as long as the price before it, or longer


class Model(Record):
    """A step-time model, and its last answer.

    A pipelined one has ``stages`` beside its terms, and a pipeline for each number of
    micro-batches up to ``most``.
    """

    shape_at: int
    terms_at: int
    numbers_at: int
    stages_at: int
    pipelines_at: int
    cut_at: int
    terms: int
    stages: int
    least: int
    most: int
    micro_batches: int
    overlap: int  # layers whose exchange two half batches may hide
    forward_ps: int  # from here on as in step_time.base.StepTimes
    host_ps: int
    gap_ps: int
    head_ps: int
    hop_ps: int
    outside: int
    steps: int
    extrapolated: int


class Piece(Record):
    """A piece of a pipelined step: it follows two others and takes its cost."""

    first: small
    second: small
    cost: small


class Time(Record):
    """Picoseconds: the cost of pieces, or when one ends. Also an address, or a flag."""

    value: int


class Pipeline(Record):
    """The pieces of a step, in order; ``ends`` begins with the step's start.

    Costs are those of each stage, kind of layer, micro-batch and lane, in this order.
    """

    pieces_at: int
    costs_at: int
    ends_at: int
    pieces: int
    kinds: int
    lanes: int


class World(Record):
    """Where everything is, how the engines are set, and what Python has yet to look at."""

    requests_at: int
    replicas_at: int
    winners_at: int
    model_at: int
    finished_at: int
    begun_at: int
    steps_at: int
    rows_at: int
    # settings
    leaves: int
    queue_places: int
    block_size: int
    max_batched_tokens: int
    max_seqs: int
    max_model_len: int
    chunked_prefill: int
    caching: int
    long_prefill: int
    adaptive_long_prefill: int
    by_priority: int
    depth: int  # batches that may be in flight,
    slots: int  # and room for them
    asynchronous: int
    stages: int  # of the pipeline
    layers: int
    reserve_full: int
    watermark_blocks: int
    frontend_ps: int
    ranks: int  # that step together
    sync_interval: int
    drops_stale: int
    defers_frees: int
    loads_late: int
    dbo_decode: int
    dbo_prefill: int
    # room for, and number of, what is logged
    finished_room: int
    steps_room: int
    rows_room: int
    finished: int
    begun: int
    steps: int
    rows: int
    error: int
    error_replica: int
    error_request: int


request_of = of(World, "requests_at", Request)
replica_of = of(World, "replicas_at", Replica)
winner_of = of(World, "winners_at", Number)
model_of = of(World, "model_at", Model)
finished_of = of(World, "finished_at", Finish)
begun_of = of(World, "begun_at", Load)
logged_step = of(World, "steps_at", Step)
logged_row = of(World, "rows_at", Row)
seat_of = of(Replica, "running_at", Number)
slot_of = of(Replica, "steps_at", Step)
phase_of = of(Replica, "phase_at", Number)
block_of = of(Replica, "blocks_at", Block)
holder_of = of(Replica, "holders_at", Number)
place_of = of(Replica, "queue_at", Number)
row_of = of(Step, "rows_at", Row)
preempted_of = of(Step, "preempted_at", Number)
shared_of = of(Request, "shared_at", Shared)
shape_of = of(Model, "shape_at", Shape)
stage_of = of(Replica, "stages_at", Stage)
own_shape_of = of(Replica, "shape_at", Shape)
feature_of = of(Model, "shape_at", Feature)
term_of = of(Model, "terms_at", Term)
number_of = of(Model, "numbers_at", Coefficient)
stage_price_of = of(Model, "stages_at", StagePrice)
address_of = of(Model, "pipelines_at", Time)
cut_of = of(Model, "cut_at", Time)
cost_of = of(Pipeline, "costs_at", Time)
world_at = at(World)
model_at = at(Model)
pipeline_at = at(Pipeline)
piece_at = at(Piece)
time_at = at(Time)
