"""The scriptable OpenAI-compatible server behind `start_upstream`; a program of its own: `upstream_server.py PORT`.

Each chat call takes the next scripted behaviour; when none is left, the default one (a plain answer unless `default=`
says otherwise). A behaviour is a mapping of `kind`, `times` (how many calls, 1) and:

    ok         an answer. text ("You said: " and the last message), delay_s before the first byte (0), token_s between
               streamed tokens (0), cached_tokens (0), logprob of each (-0.25), usage (True; False leaves it out)
    status     an error. status (500), retry_after (the header's text: seconds or a date), message; delay_s as above
    hang       no answer until the client hangs up
    malformed  status 200 and half a JSON document (streamed: one broken event)
    shape      status 200 and a JSON object that is no completion
    drop       part of an answer, then the connection closes (streamed: after `after` tokens, 2)

Tokens are words. An answer is cut at the call's max_tokens, with finish_reason "length".
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

Behaviour = Mapping[str, Any]


class _Dropped(Exception):
    """Raised while an answer is being sent: the server then closes the connection."""


class _State:
    """What is scripted, and what was seen."""

    def __init__(self) -> None:
        self.now = 0
        self.reset()

    def reset(self) -> None:
        self.scripted: deque[Behaviour] = deque()
        self.default: Behaviour = {"kind": "ok"}
        self.calls: list[dict[str, Any]] = []
        self.most = self.now

    def script(self, order: Mapping[str, Any]) -> None:
        self.scripted = deque(b for b in order["behaviours"] for _ in range(b.get("times", 1)))
        self.default = order.get("default") or self.default

    def enter(self, body: Any, authorization: str | None, connection: str) -> tuple[Behaviour, dict[str, Any]]:
        behaviour = self.scripted.popleft() if self.scripted else self.default
        call = {"kind": behaviour["kind"], "body": body, "authorization": authorization, "connection": connection}
        call |= {"at_s": time.monotonic(), "outcome": "open"}
        self.calls.append(call)
        self.now += 1
        self.most = max(self.most, self.now)
        return behaviour, call

    def leave(self, call: dict[str, Any], outcome: str) -> None:
        if call["outcome"] == "open":
            call["outcome"] = outcome
            self.now -= 1


def _answer(body: Mapping[str, Any], behaviour: Behaviour) -> tuple[list[str], str, dict[str, Any]]:
    """The answer's tokens (with the blanks between them), its finish reason and its usage."""
    words = str(behaviour.get("text", f"You said: {body['messages'][-1]['content']}")).split()
    limit = int(body.get("max_completion_tokens") or body.get("max_tokens") or 1_000_000)
    tokens = [word if i == 0 else f" {word}" for i, word in enumerate(words[:limit])]
    prompt = sum(len(str(message["content"]).split()) for message in body["messages"])
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": len(tokens),
        "total_tokens": prompt + len(tokens),
        "prompt_tokens_details": {"cached_tokens": behaviour.get("cached_tokens", 0)},
    }
    return tokens, "length" if len(words) > limit else "stop", usage


def _logprobs(body: Mapping[str, Any], behaviour: Behaviour, tokens: list[str]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    logprob = behaviour.get("logprob", -0.25)
    return {"content": [{"token": t, "logprob": logprob, "bytes": None, "top_logprobs": []} for t in tokens]}


def _completion(body: Mapping[str, Any], behaviour: Behaviour) -> dict[str, Any]:
    tokens, finish_reason, usage = _answer(body, behaviour)
    message = {"role": "assistant", "content": "".join(tokens)}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    choice["logprobs"] = _logprobs(body, behaviour, tokens)
    answer = {"id": "chat-1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
    return answer | ({"usage": usage} if behaviour.get("usage", True) else {})


def _chunks(body: Mapping[str, Any], behaviour: Behaviour) -> Iterator[dict[str, Any]]:
    tokens, finish_reason, usage = _answer(body, behaviour)
    head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 0, "model": body["model"]}

    def chunk(delta: dict[str, Any], token: str | None = None, finish: str | None = None) -> dict[str, Any]:
        logprobs = _logprobs(body, behaviour, [token]) if token is not None else None
        return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}]}

    yield chunk({"role": "assistant", "content": ""})
    for token in tokens:
        yield chunk({"content": token}, token)
    yield chunk({}, finish=finish_reason)
    if (body.get("stream_options") or {}).get("include_usage") and behaviour.get("usage", True):
        yield head | {"choices": [], "usage": usage}


async def _events(body: Mapping[str, Any], behaviour: Behaviour) -> AsyncIterator[bytes]:
    """The server-sent events of a streamed answer, as far as the behaviour lets them come."""
    if behaviour["kind"] == "malformed":
        yield b'data: {"choices": [{"delta": {"con\n\n'
        return
    for sent, chunk in enumerate(_chunks(body, behaviour)):
        if behaviour["kind"] == "drop" and sent > behaviour.get("after", 2):
            raise _Dropped
        yield f"data: {json.dumps(chunk)}\n\n".encode()
        await asyncio.sleep(behaviour.get("token_s", 0.0))


async def _document(body: Mapping[str, Any], behaviour: Behaviour) -> AsyncIterator[bytes]:
    """The body of a plain answer, as far as the behaviour lets it come."""
    text = json.dumps({"surprise": True} if behaviour["kind"] == "shape" else _completion(body, behaviour)).encode()
    yield text if behaviour["kind"] in ("ok", "shape") else text[: len(text) // 2]
    if behaviour["kind"] == "drop":
        raise _Dropped


def _serve(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, Response, StreamingResponse

    app, state = FastAPI(), _State()
    # The pipe ends with the process that started this one, however that ends.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()

    async def stays(request: Request, seconds: float) -> bool:
        """Wait; False as soon as the client hangs up."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if await request.is_disconnected():
                return False
            await asyncio.sleep(min(left, 0.02))
        return True

    async def sent(parts: AsyncIterator[bytes], last: bytes, call: dict[str, Any]) -> AsyncIterator[bytes]:
        outcome = "hung up"  # unless the parts come to an end of their own
        try:
            async for part in parts:
                yield part
            state.leave(
                call, "answered"
            )  # before the client can know, so that its next call is not counted beside this
            yield last
        except _Dropped:
            outcome = "dropped"
            raise
        finally:
            state.leave(call, outcome)

    async def chat(request: Request) -> Response:
        body = await request.json()
        client = request.client
        connection = f"{client.host}:{client.port}" if client else "unknown"
        behaviour, call = state.enter(body, request.headers.get("authorization"), connection)
        delay_s = float("inf") if behaviour["kind"] == "hang" else float(behaviour.get("delay_s", 0.0))
        if not await stays(request, delay_s):
            state.leave(call, "hung up")
            return Response(status_code=499)
        if behaviour["kind"] == "status":
            state.leave(call, "answered")
            message = {"message": behaviour.get("message", "scripted error"), "type": "scripted", "code": None}
            headers = {"retry-after": behaviour["retry_after"]} if "retry_after" in behaviour else None
            return JSONResponse({"error": message}, behaviour.get("status", 500), headers)
        streamed = bool(body.get("stream")) and behaviour["kind"] != "shape"
        if streamed:
            events = sent(_events(body, behaviour), b"data: [DONE]\n\n", call)
            return StreamingResponse(events, media_type="text/event-stream")
        return StreamingResponse(sent(_document(body, behaviour), b"", call), media_type="application/json")

    async def control(request: Request) -> Response:
        name = request.path_params["name"]
        if name == "script":
            state.script(await request.json())
        if name == "reset":
            state.reset()
        return JSONResponse(state.calls if name == "calls" else {"now": state.now, "most": state.most})

    async def models(request: Request) -> Response:
        del request
        return JSONResponse({"object": "list", "data": [{"id": "scripted", "object": "model", "owned_by": "tests"}]})

    app.add_route("/v1/chat/completions", chat, methods=["POST"])
    app.add_route("/v1/models", models)
    app.add_route("/control/{name}", control, methods=["GET", "POST"])
    with socket.create_server(("127.0.0.1", port), backlog=1024) as listening:
        sys.stdout.write(f"{listening.getsockname()[1]}\n")
        sys.stdout.flush()
        # Failing on purpose is this server's work: its log would only bury what the test says.
        uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[listening])


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
