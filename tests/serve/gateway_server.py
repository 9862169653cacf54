"""A gateway on a real HTTP server in this process, over tiers that are small real objects."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import openai
import uvicorn

from serve.gateway.attempts import TierHandle
from serve.gateway.calls import Calls, GatewayOptions
from serve.gateway.replies import CallRecord
from serve.gateway.web import build_app
from serve.generation import Generation, Sampling
from workloads.errors import InputError, ModelUnavailable, suggest
from workloads.placing import Charge, Decision, Placer, TierLoad
from workloads.task import Completion, Message, ModelCall

Messages = tuple[Message, ...]
QUESTION: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "how are you today"}]
PATIENCE_S = 240.0
"""How long tests wait for what must happen; machines are shared and slow, so this says nothing about speed."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class WordTier:
    """Answers with the last message's words, one piece a word; every word is a token. Knobs are plain attributes."""

    def __init__(self, model: str, capacity: int = 4, token_s: float = 0.0) -> None:
        self.model, self.capacity, self.token_s = model, capacity, token_s
        self.request_timeout_s = PATIENCE_S
        self.failing: ModelUnavailable | Exception | None = None
        self.fails_after = 0  # pieces of a stream that come before the failure
        self.sick = ""
        self.active = self.started = self.cancelled = 0
        self.limits_s: list[float] = []
        self.asked: list[tuple[Messages, int | None, Sampling | None]] = []

    async def generate(
        self, messages: Messages, max_tokens: int | None, sampling: Sampling | None, timeout_s: float
    ) -> Generation:
        answer: Generation | None = None
        async for item in self.stream(messages, max_tokens, sampling, timeout_s):
            answer = item if isinstance(item, Generation) else answer
        assert answer is not None
        return answer

    async def stream(
        self, messages: Messages, max_tokens: int | None, sampling: Sampling | None, timeout_s: float
    ) -> AsyncGenerator[str | Generation, None]:
        self.asked.append((messages, max_tokens, sampling))
        self.limits_s.append(timeout_s)
        self.started += 1
        self.active += 1
        try:
            words = f"{self.model} heard: {messages[-1].content}".split(" ")
            kept = words[:max_tokens]
            for index, word in enumerate(kept):
                if self.failing is not None and index >= self.fails_after:
                    raise self.failing
                await asyncio.sleep(self.token_s)
                yield word if index == 0 else f" {word}"
            prompt_tokens = sum(len(message.content.split(" ")) for message in messages)
            reason = "stop" if len(kept) == len(words) else "length"
            yield Generation(" ".join(kept), prompt_tokens, len(kept), -0.5, 0.01, 0.02, reason, cached_tokens=1)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    async def health(self) -> str:
        if self.sick == "hangs":
            await asyncio.sleep(60)
        if self.sick == "raises":
            raise RuntimeError("secret address 10.0.0.1")
        return self.sick


class WordPlacer:
    """`isthmus/by-length` sends conversations of more than 20 characters to the cloud; tiers go by their names.

    A token costs 1e-6 $ at the edge and 1e-5 $ in the cloud, and 2 J.
    """

    def __init__(self) -> None:
        self.placed: list[tuple[str, int, ModelCall, Mapping[str, TierLoad]]] = []
        self.failing: Exception | None = None

    def names(self) -> tuple[str, ...]:
        return ("isthmus/by-length", "edge", "cloud")

    def check(self, model_name: str) -> str:
        if model_name not in self.names():
            raise InputError("model", f"there is no model {model_name!r}", suggest(model_name, self.names()))
        return model_name

    def prepare(self, model_name: str) -> None:
        self.check(model_name)

    def place(self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad]) -> Decision:
        if self.failing is not None:
            raise self.failing
        self.placed.append((model_name, request, call, load))
        if model_name in ("edge", "cloud"):
            return Decision(model_name, "asked for by name", 0.0)
        size = sum(len(message.content) for message in call.messages)
        tier, other = ("cloud", "edge") if size > 20 else ("edge", "cloud")
        return Decision(tier, "length \N{GREEK SMALL LETTER ALPHA}\n", 0.000125, (other,))

    def reviews(self, model_name: str) -> bool:
        del model_name
        return False

    def review(
        self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad], decision: Decision, completion: Completion
    ) -> Decision | None:  # fmt: skip
        raise AssertionError("asked although it reviews nothing")

    def charge(
        self, tier: str, completion: Completion, upload_bytes: float, download_bytes: float, prefill_s: float, decode_s: float,
        *, decision_s: float = 0.0, model_name: str = "", request: int = -1, position: int = 0,
    ) -> Charge:  # fmt: skip
        assert upload_bytes > 0
        assert download_bytes > 0
        tokens = completion.prompt_tokens + completion.completion_tokens
        return Charge(tokens * (1e-6 if tier == "edge" else 1e-5), 2.0 * tokens)


class Response(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Gateway:
    """A running gateway."""

    def __init__(self, url: str, calls: Calls, tiers: dict[str, WordTier], placer: WordPlacer) -> None:
        self.url, self.calls, self.tiers, self.placer = url, calls, tiers, placer
        self.records: list[CallRecord] = []

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def request(
        self, path: str, body: bytes | None = None, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        """One request, errors returned like answers."""
        given = {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, body, given, method=method)  # noqa: S310 - our own server
        try:
            with _DIRECT.open(request, timeout=PATIENCE_S) as answer:
                return Response(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, dict(error.headers), error.read())

    def chat(self, document: Any = None, /, **fields: Any) -> Response:
        """A chat call with this document, or with these fields beside a model and a short message."""
        whole = {"model": "edge", "messages": [{"role": "user", "content": "hi there"}], **fields}
        return self.request("/v1/chat/completions", json.dumps(whole if document is None else document).encode())


@contextmanager
def start_gateway(
    options: GatewayOptions | None = None, placer: Placer | None = None, **tiers: WordTier
) -> Iterator[Gateway]:
    """A gateway over two WordTiers named edge and cloud; ends with the block."""
    own = {"edge": WordTier("tiny"), "cloud": WordTier("huge"), **tiers}
    words = WordPlacer()
    placer, handles = placer or words, dict[str, TierHandle](own)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        started = threading.Event()
        running: list[Gateway] = []

        async def serve() -> None:
            calls = Calls(placer, handles, options or GatewayOptions())
            gateway = Gateway(f"http://127.0.0.1:{listening.getsockname()[1]}", calls, own, words)
            running.append(gateway)
            app = build_app(calls, gateway.records.append)
            server.config.app = app
            started.set()
            await server.serve(sockets=[listening])

        server = uvicorn.Server(uvicorn.Config("unused", log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="gateway")
        thread.start()
        try:
            assert started.wait(PATIENCE_S)
            yield running[0]
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def client_of(gateway: Gateway, **options: Any) -> openai.OpenAI:
    """The official client. Left to itself it gives a connection 5 s, which a busy machine may need."""
    given = {"max_retries": 0, "timeout": PATIENCE_S} | options
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", **given)


def until(happens: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait for something that another thread does."""
    give_up_s = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.01)


def error_of(response: Any, status: int) -> dict[str, Any]:
    """The error of an answer with this status, which must look as OpenAI's do."""
    assert response.status == status, response.body
    assert response.headers["content-type"] == "application/json"
    assert set(response.document) == {"error"}
    error: dict[str, Any] = response.document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error
