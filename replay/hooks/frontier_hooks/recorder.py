"""What the scheduler did, as rows; touches nothing but public attributes of its objects.

            schedule()            forward                update_from_output()
step n   |--start_s----|------------------------------|-------------------end_s|
row of step n is written at end_s; under async scheduling step n+1 has begun by then
"""

from __future__ import annotations

import time
from operator import attrgetter, sub
from pathlib import Path
from typing import Any

from frontier_hooks.hashing import chain, root
from frontier_hooks.spool import Stream

STEP_ATTRIBUTE = "frontier_step"  # travels with the scheduler's output to the worker
_progress = attrgetter("num_computed_tokens")
_id = attrgetter("request_id")
_new_tokens = attrgetter("new_token_ids")


class Recorder:
    """Writes ``requests.<replica>`` and ``steps.<replica>`` of one scheduler.

    Requests get small numbers in the order they come, so that step rows are plain integers.
    What is done for every request of every step is the cost: it is ``map`` over C functions,
    and the batch of the step before is mostly this one's too.
    """

    def __init__(
        self, scheduler: Any, directory: Path, replica: int, block_tokens: int, key: bytes
    ) -> None:
        self._scheduler = scheduler
        self._requests = Stream(directory, f"requests.{replica}")
        self._steps = Stream(directory, f"steps.{replica}")
        self._block_tokens = block_tokens
        self._key = key
        self._number: dict[str, int] = {}
        self._request: dict[str, Any] = {}
        self._batch: list[str] = []  # ids of the step before, with their requests and numbers
        self._batch_requests: list[Any] = []
        self._batch_numbers: list[int] = []
        self._digests: dict[int, bytes] = {}
        self._pending: dict[int, dict[str, Any]] = {}
        self._leaving: list[str] | None = None
        self._numbers = 0
        self._step = 0
        self._empty_steps = 0
        self._empty_preempted: list[int] = []

    def added(self, request: Any, queued_s: float) -> None:
        """A request entered the waiting queue at ``queued_s`` (monotonic)."""
        number, self._numbers = self._numbers, self._numbers + 1
        self._number[request.request_id] = number
        self._request[request.request_id] = request
        self._batch = []
        tokens = getattr(request, "prompt_token_ids", None)
        hashes: list[int] = []
        if tokens is not None and getattr(request, "prompt_embeds", None) is None:
            adapter = getattr(request, "lora_request", None)
            images = [str(f.identifier) for f in getattr(request, "mm_features", None) or ()]
            salt = getattr(request, "cache_salt", None) or ""
            start = root(self._key, salt, getattr(adapter, "lora_name", ""), *images)
            hashes, self._digests[number] = chain(tokens, self._block_tokens, start, self._key)
        self._requests.write(
            {
                "event": "added",
                "request": number,
                "id": request.request_id,
                "time_s": queued_s,
                # the front end stamps the epoch clock; how long ago that was is what counts
                "age_s": time.time() - request.arrival_time - (time.monotonic() - queued_s),
                "prompt_tokens": request.num_prompt_tokens,
                "max_tokens": request.max_tokens,
                "priority": request.priority,
                "hashes": hashes,
                "features": _features(request),
            }
        )

    def scheduled(self, start_s: float, output: Any) -> None:
        """``schedule()`` entered at ``start_s`` has returned ``output``."""
        left_out = output.preempted_req_ids or ()
        preempted = sorted(self._number[i] for i in left_out if i in self._number)
        tokens = output.num_scheduled_tokens
        if not tokens:  # not a step, but whom it preempted must not be lost
            self._empty_steps += 1
            self._empty_preempted += preempted
            return
        ids, counts = list(tokens), list(tokens.values())
        if ids != self._batch:
            self._batch = ids
            self._batch_requests = list(map(self._request.__getitem__, ids))
            self._batch_numbers = list(map(self._number.__getitem__, ids))
        progress = map(_progress, self._batch_requests)  # schedule() has advanced it
        running, waiting = self._scheduler.get_request_counts()
        self._pending[self._step] = {
            "step": self._step,
            "start_s": start_s,
            "end_s": 0.0,
            "running": running,
            "waiting": waiting,
            "free_blocks": self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            "padded_tokens": None,
            "empty_before": self._empty_steps,
            "preempted_before": self._empty_preempted,
            "preempted": preempted,
            "requests": self._batch_numbers,
            "tokens": counts,
            "computed": list(map(sub, progress, counts)),
        }
        setattr(output, STEP_ATTRIBUTE, self._step)
        self._step += 1
        self._empty_steps, self._empty_preempted = 0, []

    def updating(self) -> None:
        """``update_from_output()`` begins: requests that leave now leave at its end."""
        self._leaving = []

    def updated(self, output: Any, model_output: Any, outputs: Any, end_s: float) -> None:
        """``update_from_output()`` returned ``outputs`` at ``end_s``: the step is complete."""
        leaving, self._leaving = self._leaving or [], None
        rows = [one for client in outputs.values() for one in client.outputs]
        leaving += [one.request_id for one in rows if one.finish_reason is not None]
        row = self._pending.pop(getattr(output, STEP_ATTRIBUTE, -1), None)
        if row is not None:
            row["end_s"] = end_s
            row["emitted"] = _emitted(list(output.num_scheduled_tokens), rows)
            graph = getattr(model_output, "cudagraph_stats", None)
            row["padded_tokens"] = graph and graph.num_padded_tokens
            self._steps.write(row)
        for request_id in leaving:
            self._left(request_id, end_s)

    def swept(self, request_ids: Any) -> None:
        """``finish_requests()`` ran over ``request_ids`` (None: all): aborts and errors."""
        ids = list(self._request) if request_ids is None else request_ids
        for request_id in [ids] if isinstance(ids, str) else ids:
            if self._leaving is not None:
                self._leaving.append(request_id)
            else:
                self._left(request_id, time.monotonic())

    def _left(self, request_id: str, end_s: float) -> None:
        request = self._request.get(request_id)
        if request is None or not request.is_finished():  # a session between two turns stays
            return
        del self._request[request_id]
        number = self._number.pop(request_id)
        self._batch = []
        hashes: list[int] = []
        if (digest := self._digests.pop(number, None)) is not None:
            done = request.num_prompt_tokens // self._block_tokens * self._block_tokens
            rest = request.all_token_ids[done:]
            hashes, _ = chain(rest, self._block_tokens, digest, self._key)
        self._requests.write(
            {
                "event": "left",
                "request": number,
                "time_s": end_s,
                "status": request.status.name,
                "output_tokens": request.num_output_tokens,
                "preemptions": request.num_preemptions,
                "hashes": hashes,
            }
        )


def _emitted(ids: list[str], rows: list[Any]) -> list[int]:
    """New tokens of each request of a batch; not every one has a row."""
    new = list(map(len, map(_new_tokens, rows)))
    emitting = list(map(_id, rows))
    if emitting == ids:
        return new
    by_id = dict(zip(emitting, new, strict=True))
    return [by_id.get(i, 0) for i in ids]


def _features(request: Any) -> list[str]:
    """What this request used that a scheduler of plain text generation does not know."""
    uses = {
        "structured output": getattr(request, "use_structured_output", False),
        "LoRA adapter": getattr(request, "lora_request", None),
        "multimodal input": getattr(request, "mm_features", None),
        "prompt embeddings": getattr(request, "prompt_embeds", None) is not None,
        "pooling": getattr(request, "pooling_params", None),
        "streaming input session": getattr(request, "resumable", False),
        "prompt logprobs (prefix cache not read)": getattr(
            request, "skip_reading_prefix_cache", False
        ),
    }
    return [name for name, used in uses.items() if used]
