"""An engine without a model behind the real recorder: vLLM's objects, as far as it looks."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from frontier_hooks.forward import ForwardRecorder
from frontier_hooks.recorder import STEP_ATTRIBUTE, Recorder
from frontier_hooks.spool import Stream, clock_pair

BLOCK_TOKENS = 4
KEY = b"0123456789abcdef"
MODEL = {"model_type": "qwen3", "hidden_size": 64}


class Status(Enum):
    """The names that vLLM's RequestStatus has."""

    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2
    FINISHED_LENGTH_CAPPED = 3
    FINISHED_ABORTED = 4


@dataclass
class FakeRequest:
    """What the recorder reads of a vLLM request."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    arrival_time: float
    priority: int = 0
    cache_salt: str | None = None
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    status: Status = Status.WAITING

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.output_token_ids)

    @property
    def all_token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.output_token_ids

    def is_finished(self) -> bool:
        return self.status.value >= Status.FINISHED_LENGTH_CAPPED.value


class FakeEngine:
    """Runs what it is told to run; every step goes through a real ``Recorder``."""

    def __init__(self, spool: Path, replica: int = 0) -> None:
        Stream(spool, f"model.{replica}").write(MODEL)
        Stream(spool, f"engine.{replica}").write(engine_row(replica))
        self.requests: dict[str, FakeRequest] = {}
        self.kv_cache_manager = SimpleNamespace(
            block_pool=SimpleNamespace(get_num_free_blocks=lambda: 7)
        )
        self.recorder = Recorder(self, spool, replica, BLOCK_TOKENS, KEY)
        nothing = SimpleNamespace(modules=list)  # a model without MoE layers
        self.forward = ForwardRecorder(spool, replica, 0, one_rank(), nothing, "cpu")

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests."""
        running = sum(r.status == Status.RUNNING for r in self.requests.values())
        return running, len(self.requests) - running

    def add(self, name: str, prompt: list[int], max_tokens: int, **more: Any) -> FakeRequest:
        """A request arrived a millisecond ago and is queued now."""
        queued_s = time.monotonic()
        request = FakeRequest(name, prompt, max_tokens, time.time() - 0.001, **more)
        self.requests[name] = request
        self.recorder.added(request, queued_s)
        return request

    def step(self, tokens: dict[str, int], preempt: str | None = None, cached: int = 0) -> None:
        """Run ``tokens`` of each request; whoever has caught up emits the token 100 + k.

        ``cached`` tokens of those that begin are found in the cache.
        """
        start_s = time.monotonic()
        if preempt:
            victim = self.requests[preempt]
            victim.status, victim.num_computed_tokens = Status.PREEMPTED, 0
            victim.num_preemptions += 1
        for name, count in tokens.items():
            request = self.requests[name]
            if request.status == Status.WAITING:
                request.num_computed_tokens = cached
            request.status = Status.RUNNING
            request.num_computed_tokens += count
        output = SimpleNamespace(
            num_scheduled_tokens=tokens, preempted_req_ids={preempt} if preempt else None
        )
        self.recorder.scheduled(start_s, output)
        if tokens:
            self.forward.begin(getattr(output, STEP_ATTRIBUTE))
            self.forward.pause()
            self.forward.resume()
            self.forward.end()
        self._update(output)

    def abort(self, name: str) -> None:
        """The client went away."""
        self.requests.pop(name).status = Status.FINISHED_ABORTED
        self.recorder.swept([name])

    def _update(self, output: Any) -> None:
        self.recorder.updating()
        rows = []
        for name in output.num_scheduled_tokens:
            request, new = self.requests[name], []
            if request.num_computed_tokens == len(request.all_token_ids):
                new = [100 + request.num_output_tokens]
                request.output_token_ids += new
            done = request.num_output_tokens == request.max_tokens
            if done:
                self.requests.pop(name).status = Status.FINISHED_LENGTH_CAPPED
            reason = "length" if done else None
            rows.append(SimpleNamespace(request_id=name, new_token_ids=new, finish_reason=reason))
        outputs = {0: SimpleNamespace(outputs=rows)}
        self.recorder.updated(output, SimpleNamespace(), outputs, time.monotonic())


def one_rank() -> SimpleNamespace:
    """As much of a vLLM configuration as says that the worker is alone."""
    return SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=1, data_parallel_size=1),
        compilation_config=SimpleNamespace(mode=SimpleNamespace(name="NONE")),
    )


def engine_row(replica: int = 0) -> dict[str, Any]:
    """What the hooks would say about the engine, cut down to what the bundle needs."""
    return {
        "replica": replica,
        "clock": clock_pair(),
        "versions": {"vllm": "0.32.0"},
        "device": {"type": "cpu", "name": "none"},
        "random_ids": True,
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks": 8,
        "kv_groups": [],
        "config": {
            "cache_config": {"num_gpu_blocks": 8, "block_size": BLOCK_TOKENS},
            "model_config": {"dtype": "torch.float32", "max_model_len": 100, "model": "/x/y/m"},
        },
    }
