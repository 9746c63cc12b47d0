"""An OpenAI-compatible endpoint that does what the request ids tell it to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeServer:
    """Serves tokens ``token_s`` apart; an id that starts with a fault's name gets that fault.

    ``http-500``, ``in-stream``, ``ends-early``, ``slow``. ``gate`` holds every answer back
    until that many requests are in flight.
    """

    token_s: float = 0.0
    gate: int = 0
    max_model_len: int | None = 1000
    hands_over: dict[str, Any] | None = None  # what a prefill engine says of its KV
    url: str = ""
    got: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Serve from a thread of its own."""
        loop, up = asyncio.new_event_loop(), threading.Event()

        async def serve() -> None:
            application = web.Application()
            application.router.add_get("/v1/models", self._models)
            application.router.add_post("/v1/completions", self._completions)
            self._open = asyncio.Condition()
            runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._stop = asyncio.Event()
            up.set()
            await self._stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
        thread.start()
        try:
            assert up.wait(30)
            yield self
        finally:
            loop.call_soon_threadsafe(self._stop.set)
            thread.join()
            loop.close()

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": "tiny", "max_model_len": self.max_model_len}
        return web.json_response({"data": [card, {"id": "other"}]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = request.headers["X-Request-Id"]
        self.got.append({"id": name, **body})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request, name, body)
        finally:
            self.in_flight -= 1

    async def _answer(
        self, request: web.Request, name: str, body: dict[str, Any]
    ) -> web.StreamResponse:
        async with self._open:
            self._open.notify_all()
            await self._open.wait_for(lambda: len(self.got) >= self.gate)
        if name.startswith("http-500"):
            return web.Response(status=500, text="out of\nmemory")
        if body.get("kv_transfer_params", {}).get("do_remote_decode"):
            return web.json_response({"kv_transfer_params": self.hands_over})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = body["max_tokens"]
        for k in range(count):
            await asyncio.sleep(60 if name.startswith("slow") and k else self.token_s)
            if name.startswith("in-stream") and k == 1:
                await _event(response, {"error": "engine died"})
                return response
            if name.startswith("ends-early") and k == 1:
                return response
            choice: dict[str, Any] = {"text": "", "finish_reason": None}
            if k == count - 1:
                choice["finish_reason"] = "length"
            if body.get("return_token_ids"):
                choice["token_ids"] = [60 + k]
            await _event(response, {"choices": [choice]})
        usage = {"completion_tokens": count, "prompt_tokens": len(body["prompt"])}
        await _event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _event(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(event)}\n\n".encode())
