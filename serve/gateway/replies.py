"""How a chat call's answer is sent: as one document or as server-sent events, as long as the client stays on the line."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from serve.gateway.attempts import Lost, Placed
from serve.gateway.calls import Answered, Calls, Stream
from serve.gateway.openai_answers import (
    DONE,
    Head,
    StopCutter,
    chunk,
    completion,
    encoded,
    event,
    finish_reason,
    last_chunks,
)
from serve.gateway.openai_protocol import ApiError

HUNG_UP = 499
"""Status under which a call is counted whose client did not wait for the answer."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """How one chat call ended, for metrics. Zero tokens and dollars where no answer came to its end.

    `lost` are its attempts that may have cost something beside that.
    """

    model: str = "none"
    tier: str = "none"
    status: int = 500
    elapsed_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    energy_j: float = 0.0
    failed_over: bool = False
    lost: tuple[Lost, ...] = ()


Observer = Callable[[CallRecord], None]


class Exchange(Response):
    """An answer that is worked out while its client is watched: the work is cancelled as soon as the client hangs up."""

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Do the work, or as much of it as the client waits for."""
        working = asyncio.ensure_future(self._work(send))
        gone = asyncio.ensure_future(_hung_up(receive))
        try:
            await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class TooSlow(Exception):
    """The client does not read its answer."""


class Reply:
    """Sends one chat call's answer and keeps its record. Raises TooSlow when the client takes nothing for `send_timeout_s`."""

    def __init__(self, calls: Calls, headers: Mapping[str, str], send: Send, record: CallRecord) -> None:
        self._calls, self._headers, self._send, self._record = calls, headers, send, record
        self._placed: Placed | None = None
        self._streaming = False

    @property
    def record(self) -> CallRecord:
        """How the call stands."""
        return replace(self._record, lost=tuple(self._placed.lost)) if self._placed else self._record

    async def plain(self, placed: Placed) -> None:
        """One JSON document."""
        self._begin(placed)
        answered = await self._calls.answer(placed)
        cutter = StopCutter(placed.chat.stop)
        text = cutter.feed(answered.generation.text) + cutter.end()
        reason = finish_reason(answered.generation, cut=cutter.cut)
        self._note(answered)
        document = completion(Head.new(placed.chat.model), text, reason, answered.generation, answered.extra())
        headers = _placement_headers(answered.tier, answered.reason, placed) | {
            "X-Isthmus-Cost-USD": f"{answered.charge.cost_usd:.9g}",
            "X-Isthmus-Energy-J": f"{answered.charge.energy_j:.9g}",
        }
        await self._respond(json_response(document, 200, {**self._headers, **headers}))

    async def streamed(self, placed: Placed) -> None:
        """Server-sent events."""
        self._begin(placed)
        head, cutter = Head.new(placed.chat.model), StopCutter(placed.chat.stop)
        stream: Stream | None = None
        more = {"usage": None} if placed.chat.include_usage else {}
        async with aclosing(self._calls.stream(placed)) as items:
            async for item in items:
                if isinstance(item, Stream):
                    stream = item
                    await self._start(stream)
                    await self._tell(stream, event(chunk(head, {"role": "assistant", "content": ""}, **more)))
                elif stream is not None and (text := cutter.feed(item)):
                    await self._tell(stream, event(chunk(head, {"content": text}, **more)))
        assert stream is not None
        answered = stream.answered
        assert answered is not None
        if held := cutter.end():
            await self._tell(stream, event(chunk(head, {"content": held}, **more)))
        self._note(answered)
        reason = finish_reason(answered.generation, cut=cutter.cut)
        last = last_chunks(head, reason, answered.generation, answered.extra(), include_usage=placed.chat.include_usage)
        await self._end(b"".join(event(document) for document in last) + DONE)

    async def failed(self, error: ApiError) -> None:
        """An error: as the answer, or where one has begun as its last event."""
        self._record = replace(self._record, status=error.status)
        if self._streaming:
            await self._end(event(error.body()))
        else:
            await self._respond(error_response(error, self._headers))

    def _begin(self, placed: Placed) -> None:
        self._placed, self._record = placed, replace(self._record, tier=placed.decision.tier)

    def _note(self, answered: Answered) -> None:
        generation = answered.generation
        self._record = replace(
            self._record, tier=answered.tier, status=200, prompt_tokens=generation.prompt_tokens,
            cached_tokens=generation.cached_tokens, completion_tokens=generation.completion_tokens,
            cost_usd=answered.charge.cost_usd, energy_j=answered.charge.energy_j,
            failed_over=answered.tier != answered.placed.decision.tier,
        )  # fmt: skip

    async def _respond(self, response: Response) -> None:
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self._put(start)
        await self._end(bytes(response.body))

    async def _start(self, stream: Stream) -> None:
        headers = {
            "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no",
            **self._headers, **_placement_headers(stream.tier, stream.reason, stream.placed),
        }  # fmt: skip
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._record = replace(self._record, tier=stream.tier)
        self._streaming = True
        await self._put({"type": "http.response.start", "status": 200, "headers": raw})

    async def _tell(self, stream: Stream, data: bytes) -> None:
        stream.sent_bytes += len(data)
        await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def _end(self, data: bytes) -> None:
        await self._put({"type": "http.response.body", "body": data, "more_body": False})

    async def _put(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._calls.options.send_timeout_s):  # else its slot were its own for ever
                await self._send(message)
        except TimeoutError:
            raise TooSlow from None


def json_response(document: Mapping[str, Any], status: int, headers: Mapping[str, str]) -> Response:
    """A JSON document as an answer."""
    return Response(encoded(document), status, headers, "application/json")


def error_response(error: ApiError, headers: Mapping[str, str]) -> Response:
    """An error as an answer."""
    return json_response(error.body(), error.status, {**headers, **error.headers})


def _placement_headers(tier: str, reason: str, placed: Placed) -> dict[str, str]:
    return {
        "X-Isthmus-Tier": _header(tier),
        "X-Isthmus-Reason": _header(reason),
        "X-Isthmus-Decision-S": f"{placed.decision.decision_s:.6f}",
    }


def _header(text: str) -> str:
    """A text as a header may hold it: printable ASCII on one line."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:500]
