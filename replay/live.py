"""``frontier live``: send a workload to a real endpoint, record what a client sees.

Open loop: each request leaves at its own arrival time whatever the server does; what left
late is counted. Closed loop: a fixed number in flight. Sessions: a turn leaves its think
time after the answer before it. In scope: /v1/completions with token ids as prompt,
streamed. Out of scope: text, chat templates, retries.

With a prefill and decode engines it does what vLLM's proxy does: the request for one token
to prefill, and with what that says of its KV the whole request to a decode engine, in turn.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import Progress

from replay.live_bundle import LATE_S, Sent, live_bundle
from replay.live_pace import (
    PREPARE_S,
    Heartbeat,
    closed_loop,
    open_loop,
    session_loop,
    sessions_of,
)
from replay.prompts import FIRST_ID, PromptMaker
from traces.bundle import Bundle, claim_directory
from traces.errors import CaptureError, ConfigError
from traces.load import load_workload
from traces.workload import WARM_UP, Workload, first_requests, scale_rate

DEFAULT_VOCAB_SIZE = 8000  # smaller than any served model's; an id beyond it is refused
PREFILL: dict[str, Any] = {
    "max_tokens": 1,
    "stream": False,
    "stream_options": None,
    "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
}
READ_BUFFER_BYTES = 1 << 22  # one event may repeat the whole prompt


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How to send; ``concurrency`` None is open loop, of sessions where ``sessions``."""

    url: str
    decode_urls: tuple[str, ...] = ()
    model: str | None = None
    concurrency: int | None = None
    sessions: bool = False
    warmup: int = 0
    seed: int = 0
    vocab_size: int | None = None
    temperature: float = 1.0


def run_live(
    workload_path: Path,
    out: Path,
    options: LiveOptions,
    *,
    rate_scale: float = 1.0,
    limit: int | None = None,
) -> Bundle:
    """Send a workload and write the client's bundle to ``out``.

    Raises TraceError for the workload or ``out``, ConfigError if a request does not fit the
    model, CaptureError if the endpoint cannot be used or no request succeeded (the bundle is
    written all the same).
    """
    workload = load_workload(workload_path)
    if limit is not None:
        workload = first_requests(workload, limit)
    if rate_scale != 1.0:
        workload = scale_rate(workload, rate_scale)
    claim_directory(out)
    client = _Client(workload, options)
    try:
        asyncio.run(client.run())
    except KeyboardInterrupt:
        print("frontier: interrupted; requests in flight are unfinished", file=sys.stderr)
    bundle = live_bundle(out, workload, client.sent, client.notes(), options.seed)
    failed = Counter(s.error for s in client.sent if s.status == "failed")
    for error, count in failed.most_common(3):
        print(f"frontier: {count} requests failed: {error}", file=sys.stderr)
    if failed.total() == len(client.sent):
        raise CaptureError(f"{options.url}: no request succeeded; see {out}")
    return bundle


class _Client:
    def __init__(self, workload: Workload, options: LiveOptions) -> None:
        self._workload, self._options = workload, options
        self._url = _base(options.url)
        self._decode = cycle([_base(url) for url in options.decode_urls])
        requests = workload.requests
        self._ids: list[str] = requests.column("request_id").to_pylist()
        self._arrival_s = requests.column("arrival_s").to_pylist()
        self._prompt = requests.column("prompt_tokens").to_pylist()
        self._output = requests.column("output_tokens").to_pylist()
        has_priority = "priority" in requests.column_names
        self._priority = requests.column("priority").to_pylist() if has_priority else None
        self._sessions = sessions_of(requests) if options.sessions else None
        has_think = "think_s" in requests.column_names
        nothing: list[float | None] = [None] * len(requests)
        self._think_s = requests.column("think_s").to_pylist() if has_think else nothing
        self._heart, self._unsent = Heartbeat(), 0
        self.sent: list[Sent] = []
        self._done: Callable[[], None] = lambda: None

    async def run(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, read_bufsize=READ_BUFFER_BYTES
        ) as self._session:
            await self._ask_server()
            with Progress(console=Console(stderr=True), transient=True) as progress:
                total = self._options.warmup + len(self._ids)
                task = progress.add_task("requests finished", total=total)
                self._done = lambda: progress.advance(task)
                await self._warm_up()
                await self._pace()

    def notes(self) -> dict[str, Any]:
        """Counts for the manifest; zero counts are left out."""
        late = [s.sent_s - s.due_s for s in self.sent if s.sent_s - s.due_s > LATE_S]
        served = [s for s in self.sent if s.server_prompt_tokens is not None]
        notes = {
            "url path": "/v1/completions",
            "temperature": self._options.temperature,
            "token ids below": self._vocab_size,
            "loop": self._loop(),
            "warm-up requests": self._options.warmup,
            "sent late": len(late),
            "latest in seconds": round(max(late, default=0.0), 4),
            "client behind by, p99 in seconds": round(self._heart.p99_s(), 4),
            "turns not sent, one before them failed": self._unsent,
            "failed": dict(Counter(s.error for s in self.sent if s.status == "failed")),
            "prompt length differs at the server": sum(
                s.server_prompt_tokens != s.prompt_tokens for s in served
            ),
            "output length differs from the workload": sum(
                s.received_tokens != s.output_tokens for s in self.sent if s.status == "finished"
            ),
            "prompt blocks due before their answer": self._prompts.unanswered,
        }
        return {k: v for k, v in notes.items() if v not in (0, 0.0, {})}

    def _loop(self) -> str:
        concurrency = self._options.concurrency
        loop = f"closed, {concurrency}" if concurrency else "open"
        return f"{loop}, sessions" if self._options.sessions else loop

    async def _ask_server(self) -> None:
        url = f"{self._url}/v1/models"
        try:
            async with self._session.get(url) as response:
                models = (await response.json())["data"]
        except (aiohttp.ClientError, OSError, KeyError, ValueError) as error:
            raise CaptureError(f"{url}: not an OpenAI-compatible endpoint: {error}") from None
        names = [model["id"] for model in models]
        wanted = self._options.model or (names[0] if names else None)
        if wanted not in names:
            raise CaptureError(f"{url}: no model {wanted!r} (served: {', '.join(names)})")
        self._model = wanted
        card = models[names.index(wanted)]
        self._vocab_size = self._options.vocab_size or card.get("vocab_size") or DEFAULT_VOCAB_SIZE
        if self._vocab_size <= FIRST_ID:
            raise ConfigError(f"--vocab-size must be more than {FIRST_ID}")
        limit = card.get("max_model_len")
        for name, prompt, output in zip(self._ids, self._prompt, self._output, strict=True):
            if limit is not None and prompt + output > limit:
                raise ConfigError(
                    f"{self._workload.source}: request {name!r} has {prompt} + {output} tokens, "
                    f"more than the model's max_model_len of {limit}"
                )
        self._prompts = PromptMaker(
            self._workload.requests,
            self._workload.hash_block_tokens,
            self._options.seed,
            self._vocab_size,
        )

    async def _warm_up(self) -> None:
        rows = [i % len(self._ids) for i in range(self._options.warmup)]
        await asyncio.gather(
            *(
                self._send(
                    Sent(f"{WARM_UP}{k}", None, self._prompt[i], self._output[i], time.monotonic())
                )
                for k, i in enumerate(rows)
            )
        )

    async def _pace(self) -> None:
        """Send all rows as the options say."""
        rows, concurrency = len(self._ids), self._options.concurrency
        async with self._heart.beating():
            if self._sessions is not None:
                self._unsent = await session_loop(
                    self._send_row, self._sessions, self._arrival_s, self._think_s, concurrency
                )
            elif concurrency is not None:
                await closed_loop(self._send_row, rows, concurrency)
            else:
                await open_loop(self._send_row, self._arrival_s)

    async def _send_row(self, row: int, due_s: float) -> bool:
        sent = self._of_row(row, due_s)
        await asyncio.sleep(due_s - PREPARE_S - time.monotonic())
        await self._send(sent)
        return sent.status == "finished"

    def _of_row(self, row: int, due_s: float) -> Sent:
        return Sent(self._ids[row], row, self._prompt[row], self._output[row], due_s)

    async def _send(self, sent: Sent) -> None:
        self.sent.append(sent)
        if sent.row is None:
            prompt, wants_answer = self._prompts.alone(sent.request_id, sent.prompt_tokens), False
        else:
            prompt = self._prompts.prompt(sent.row)
            wants_answer = self._prompts.wants_answer(sent.row)
        body = self._body(sent, prompt, wants_answer)
        headers = {"X-Request-Id": sent.request_id, "Content-Type": "application/json"}
        first = {**body, **PREFILL} if self._options.decode_urls else body
        data = json.dumps(first).encode()
        await asyncio.sleep(sent.due_s - time.monotonic())
        sent.sent_s = time.monotonic()
        try:
            url = self._url
            if self._options.decode_urls:
                body["kv_transfer_params"] = await self._prefill(data, headers)
                data, url = json.dumps(body).encode(), next(self._decode)
            async with self._session.post(
                f"{url}/v1/completions", data=data, headers=headers
            ) as response:
                await _receive(response, sent)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            sent.status, sent.error = "failed", f"{type(error).__name__}: {error}"
        if wants_answer and sent.row is not None:
            self._prompts.answered(sent.row, prompt, sent.output_ids)
        self._done()

    async def _prefill(self, data: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """What prefill says of the KV it keeps; raises ValueError if it does not."""
        url = f"{self._url}/v1/completions"
        async with self._session.post(url, data=data, headers=headers) as response:
            if response.status != 200:
                text = (await response.text()).strip().splitlines()
                raise ValueError(f"prefill: HTTP {response.status}: {' '.join(text)[:200]}")
            params: dict[str, Any] | None = (await response.json()).get("kv_transfer_params")
        if not params:
            raise ValueError("prefill keeps no KV: it has no KV connector")
        return params

    def _body(self, sent: Sent, prompt: list[int], wants_answer: bool) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt,
            "max_tokens": sent.output_tokens,
            "ignore_eos": True,
            "temperature": self._options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if wants_answer:
            body["return_token_ids"] = True
        if self._priority and sent.row is not None and self._priority[sent.row]:
            body["priority"] = self._priority[sent.row]  # refused by a server without priorities
        return body


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


async def _receive(response: aiohttp.ClientResponse, sent: Sent) -> None:
    if response.status != 200:
        text = (await response.text()).strip().splitlines()
        sent.status, sent.error = "failed", f"HTTP {response.status}: {' '.join(text)[:200]}"
        return
    async for now_s, event in _events(response):
        if "error" in event:
            sent.status, sent.error = "failed", f"in the stream: {event['error']}"[:200]
            return
        for choice in event.get("choices", ()):
            sent.token_times_s.append(now_s)
            sent.output_ids += choice.get("token_ids") or []
            if choice.get("finish_reason"):
                sent.status = "finished"
        if usage := event.get("usage"):
            sent.received_tokens = usage["completion_tokens"]
            sent.server_prompt_tokens = usage["prompt_tokens"]
    if sent.status != "finished":
        sent.status, sent.error = "failed", "the stream ended early"
    sent.received_tokens = sent.received_tokens or len(sent.token_times_s)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """Server-sent events with the time each arrived, until ``[DONE]`` or the end."""
    async for line in response.content:
        now_s = time.monotonic()
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield now_s, json.loads(data)
