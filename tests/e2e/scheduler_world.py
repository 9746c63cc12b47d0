"""Random worlds for schedulers: one loop drives vLLM's scheduler and ours side by side."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol

from simulator.scheduling import Request, SchedulerConfig, Status
from simulator.scheduling.reference import Batch, Scheduler
from simulator.scheduling.request import Remote


@dataclass(frozen=True)
class Arrival:
    """A request of the world, with the tokens it will generate.

    Its client goes away at step ``gone_at``, unless it has finished by then. With ``remote``
    its KV comes from, or goes to, another engine, ``moving_steps`` after it could begin to.
    """

    name: str
    at_step: int
    prompt: tuple[int, ...]
    output: tuple[int, ...]
    priority: int
    arrival: int
    gone_at: int | None = None
    remote: Remote = Remote.NONE
    moving_steps: int = 0


@dataclass(frozen=True)
class Case:
    """One random world: a configuration and its arrivals."""

    seed: int
    config: SchedulerConfig
    arrivals: tuple[Arrival, ...]


@dataclass
class Trace:
    """What a scheduler decided, step by step, and what was seen on the way."""

    steps: list[tuple[Any, ...]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)


class Side(Protocol):
    """A scheduler under test; batches are opaque to the loop."""

    def add(self, arrival: Arrival) -> None: ...
    def has_requests(self) -> bool: ...
    def schedule(self) -> tuple[Any, tuple[Any, ...], bool]: ...
    def update(self, batch: Any, moved: Sequence[str]) -> None: ...
    def moving(self) -> list[str]: ...
    def abort(self, name: str) -> None: ...


def random_case(seed: int, *, asynchronous: bool) -> Case:
    """A world from a seed: the knobs that interact are drawn together."""
    rng = random.Random(seed)
    block = rng.choice([4, 8, 16])
    requests = rng.randint(4, 24)
    longest = rng.choice([24, 60, 150])
    tight = rng.random() < 0.55
    least = -(-(longest + 40) // block) + 2
    windows = rng.choice([(None,)] * 8 + [(None, 24), (16,), (None, 16, 16)])
    blocks = least * len(windows)
    blocks += rng.randint(0, least) if tight else rng.randint(2, 6) * least
    chunked = rng.random() < 0.75
    budget = rng.choice([16, 32, 64, 256]) if chunked else longest + 40 + rng.choice([0, 40])
    config = SchedulerConfig(
        num_gpu_blocks=blocks,
        block_size=block,
        max_num_batched_tokens=budget,
        max_num_seqs=rng.choice([2, 4, 8, 16]) if chunked else rng.choice([2, 4, 8]),
        max_model_len=longest + 40,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=rng.random() < 0.7,
        long_prefill_token_threshold=rng.choice([0, 0, 8, 20]) if chunked else 0,
        long_prefill_token_threshold_adaptive=rng.random() < 0.2,
        scheduling_policy=rng.choice(["fcfs", "priority"]),
        async_scheduling=asynchronous,
        scheduler_reserve_full_isl=rng.random() < 0.7,
        watermark=rng.choice([0.0, 0.0, 0.0, 0.05]),
        windows=windows,
    )
    arrivals = _arrivals(rng, requests, longest)
    impatient = rng.choice([0.0, 0.3])
    for i, arrival in enumerate(arrivals):
        if rng.random() < impatient:
            arrivals[i] = replace(arrival, gone_at=arrival.at_step + rng.randint(1, 40))
    return Case(seed, config, tuple(arrivals))


def random_remote_case(seed: int, *, asynchronous: bool) -> Case:
    """A world whose engine takes KV from other engines, or gives it to them."""
    case = random_case(seed, asynchronous=asynchronous)
    rng = random.Random(-1 - seed)
    role = rng.choice(["kv_consumer", "kv_consumer", "kv_producer", "kv_both"])
    blocks = case.config.num_gpu_blocks // len(case.config.windows)
    config = replace(case.config, windows=(None,), num_gpu_blocks=blocks, kv_role=role)
    slow = rng.choice([1, 4, 30])
    local = rng.choice([0.0, 0.0, 0.3])
    arrivals = []
    for arrival in case.arrivals:
        kinds = {"kv_consumer": [Remote.TO_LOAD], "kv_producer": [Remote.TO_KEEP]}
        remote = rng.choice(kinds.get(role, [Remote.TO_LOAD, Remote.TO_KEEP]))
        if rng.random() < local:
            remote = Remote.NONE
        output = arrival.output[:1] if remote == Remote.TO_KEEP else arrival.output
        steps = rng.randint(0, slow)
        arrivals.append(replace(arrival, remote=remote, moving_steps=steps, output=output))
    return Case(seed, config, tuple(arrivals))


def random_staged_case(seed: int, *, asynchronous: bool) -> Case:
    """A world whose engine has pipeline stages, each with a batch: vLLM is synchronous then."""
    case = random_case(seed, asynchronous=False)
    stages = random.Random(-1 - seed).choice([2, 3, 4])
    return replace(case, config=replace(case.config, stage_layers=(1,) * stages))


def _arrivals(rng: random.Random, requests: int, longest: int) -> list[Arrival]:
    shared = [tuple(rng.randrange(1000) for _ in range(longest)) for _ in range(2)]
    burst = rng.choice([1, 3, 8])
    arrivals: list[Arrival] = []
    step = 0
    for i in range(requests):
        length = rng.randint(1, longest)
        prompt = tuple(rng.randrange(1000) for _ in range(length))
        kind = rng.random()
        if kind < 0.45:
            keep = rng.randint(0, length)
            prompt = rng.choice(shared)[:keep] + prompt[keep:]
        elif kind < 0.6 and arrivals:
            before = rng.choice(arrivals)  # the next turn of a conversation
            prompt = (before.prompt + before.output + prompt)[:longest]
        output = tuple(rng.randrange(1000) for _ in range(rng.randint(1, 40)))
        arrivals.append(Arrival(f"r{i}", step, prompt, output, rng.randint(0, 2), i // 2))
        if rng.random() < 1 / burst:
            step += rng.randint(0, 6)
    return arrivals


def run(side: Side, case: Case, limit: int = 2000) -> Trace:
    """Drive one scheduler through the world, as vLLM's engine loop does.

    Synchronously, or with the queue of ``step_with_batch_queue``: two batches, or one for each
    pipeline stage. A few worlds have no end (two requests preempt each other for ever, in vLLM
    too): they stop at ``limit``. What a KV connector reports goes along with the first step that
    ends when it is due.
    """
    trace = Trace()
    pending = deque(case.arrivals)
    queue: deque[Any] = deque()
    depth = case.config.max_concurrent_batches
    steps = {arrival.name: arrival.moving_steps for arrival in case.arrivals}
    due: dict[str, int] = {}
    for turn in range(limit):
        while pending and (pending[0].at_step <= turn or not (side.has_requests() or queue or due)):
            side.add(pending.popleft())
        for arrival in case.arrivals:
            if arrival.gone_at == turn and arrival not in pending:
                side.abort(arrival.name)
        if not side.has_requests() and not queue and not due:
            if pending:
                continue
            return trace
        if side.has_requests() or due:
            batch, record, ran = side.schedule()
            trace.steps.append(record)
            queue.appendleft(batch)
            due |= {name: turn + steps[name] for name in side.moving()}
            trace.seen["three batches in flight"] += len(queue) > 2 and ran
            if len(queue) < depth and (ran or side.has_requests() or due):
                continue
        moved = [name for name, at in due.items() if at <= turn]
        side.update(queue.pop(), moved)
        due = {name: at for name, at in due.items() if name not in moved}
        due |= {name: turn + steps[name] for name in side.moving()}
    return trace


def chained(tokens: Sequence[int], block: int) -> list[int]:
    """Chained 8-byte hashes of the full blocks of ``tokens``."""
    digest, hashes = b"", []
    for i in range(len(tokens) // block):
        part = repr(tokens[i * block : (i + 1) * block]).encode()
        digest = blake2b(digest + part, digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "big", signed=True))
    return hashes


def sharing(case: Case) -> Counter[int]:
    """How many requests of the world have each block hash."""
    return Counter(
        h for a in case.arrivals for h in chained(a.prompt + a.output, case.config.block_size)
    )


class Ours:
    """Our scheduler; ``make`` builds the reference or the fast one.

    ``shared`` counts the requests that have each block hash (default: all are shared).
    ``check`` looks for leaked blocks after every step; it makes the fast scheduler write out
    what it keeps implicit, so that one must also be right without.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        make: Callable[[SchedulerConfig], Scheduler] = Scheduler,
        shared: Mapping[int, int] | None = None,
        *,
        check: bool = True,
    ) -> None:
        self.config = config
        self.scheduler = make(config)
        self.shared = shared or {}
        self.check = check
        self.requests: list[Request] = []
        self.begun: list[str] = []
        self.kinds: dict[str, Remote] = {}
        self.seen: Counter[str] = Counter()

    def add(self, arrival: Arrival) -> None:
        hashes = chained(arrival.prompt + arrival.output, self.config.block_size)
        request = Request(
            len(self.requests), len(arrival.prompt), len(arrival.output), name=arrival.name,
            arrival_ps=arrival.arrival, priority=arrival.priority, hashes=hashes,
            shared=sum(self.shared.get(h, 2) > 1 for h in hashes),
            groups=len(self.config.windows), remote=arrival.remote,
        )  # fmt: skip
        self.requests.append(request)
        self.kinds[arrival.name] = arrival.remote
        self.scheduler.add(request)

    def has_requests(self) -> bool:
        return self.scheduler.has_requests

    def schedule(self) -> tuple[Batch, tuple[Any, ...], bool]:
        before = {r.name: r.cached_tokens for r in self.requests}
        batch = self.scheduler.schedule()
        kv = self.scheduler.kv
        if self.check:
            self.scheduler.check(self.requests)
        self.seen["prefix hit"] += any(before[r.name] < 0 < r.cached_tokens for r in self.requests)
        self.seen["evicted cached block"] = kv.evictions
        self.seen["capped chunk"] = self.scheduler.capped_chunks
        record = (
            [(row.request.name, row.tokens) for row in batch.rows],
            [r.name for r in batch.preempted],
            kv.free_blocks,
            [r.name for r in self.scheduler.running],
            self.scheduler.waits,
        )
        self.begun += [request.name for request in batch.loads]
        self.seen["load"] += len(batch.loads)
        self.seen["load after a prefix hit"] += any(r.cached_tokens > 0 for r in batch.loads)
        return batch, record, batch.tokens > 0

    def update(self, batch: Batch, moved: Sequence[str]) -> None:
        for request in self.scheduler.update(batch):
            if self.kinds[request.name] == Remote.TO_KEEP and request.status == Status.FINISHED:
                self.begun.append(request.name)
                self.seen["kept blocks"] += 1
        by_name = {request.name: request for request in self.requests}
        for name in moved:
            kept = self.kinds[name] == Remote.TO_KEEP
            (self.scheduler.release if kept else self.scheduler.loaded)(by_name[name])

    def moving(self) -> list[str]:
        begun, self.begun = self.begun, []
        return begun

    def abort(self, name: str) -> None:
        for request in self.requests:
            if request.name == name and request.status < Status.FINISHED:
                self.scheduler.abort(request)
                self.seen["abort"] += 1
