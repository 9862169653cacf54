"""The caller's side of a tier without Ray: what a call that is not answered means for the next one, and what cannot be sent."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve.deployments import TierDeployment
from serve.gateway.attempts import Attempts, Placed
from serve.gateway.openai_protocol import ChatRequest
from serve.generation import Generation, ModelSpec
from serve.replicas.asking import Reply
from serve.replicas.tier_client import TierClient
from tests.serve.processes import until
from workloads.errors import ModelUnavailable
from workloads.placing import Decision, call_of
from workloads.task import Message

ASKED = (Message("user", "hello"),)
ANSWER = Generation("hi", 1, 1, -0.5, 0.1, 0.1, "stop")


class Response:
    """A call on its way, as Serve's own: an answer to wait for, or none in time."""

    def __init__(self, answer: Reply | None) -> None:
        self._answer = answer

    def result(self, timeout_s: float) -> Reply:
        if self._answer is None:
            raise TimeoutError(f"nothing within {timeout_s} s")
        return self._answer

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def _wait(self) -> Reply:
        if self._answer is None:
            await asyncio.sleep(600)
        assert self._answer is not None
        return self._answer

    async def __anext__(self) -> Reply:
        return await self._wait()

    def cancel(self) -> None:
        pass


class Handle:
    """A DeploymentHandle: a replica that answers, or does not; or nothing to send to at all."""

    def __init__(self, answer: Reply | None = None, broken: Exception | None = None) -> None:
        self.answer, self.broken, self.sent = answer, broken, 0
        self.complete = self.complete_many = self.stream = self

    def options(self, **_: Any) -> Handle:
        return self

    def remote(self, _: Any) -> Response:
        if self.broken is not None:
            raise self.broken
        self.sent += 1
        return Response(self.answer)


def client_of(handle: Handle, look: Callable[[str], tuple[int, str]], limit_s: float = 0.02) -> TierClient:
    """A client of a tier of which `look` tells how many replicas are up."""
    tier = TierDeployment("edge", "edge", ModelSpec("models/small"), request_timeout_s=limit_s)
    return TierClient(tier, "small", "app.edge", handle, look)


def reason(client: TierClient) -> str:
    """How one call ends."""
    reply = client.start(ASKED, 4, None).reply()
    return reply.reason if isinstance(reply, ModelUnavailable) else "ok"


class Looks:
    """Counts how often is looked, and tells what it is told to tell; it can be made to hang."""

    def __init__(self, running: int) -> None:
        self.running: int | Exception = running
        self.count = 0
        self.may_return = threading.Event()
        self.may_return.set()

    def __call__(self, app: str) -> tuple[int, str]:
        self.count += 1
        assert self.may_return.wait(60)
        if isinstance(self.running, Exception):
            raise self.running
        return self.running, ""


def test_a_slow_tier_is_never_unreachable() -> None:
    """Call after call runs out of time while replicas are up: each is sent and ends as a timeout."""
    looks, handle = Looks(running=2), Handle()
    client = client_of(handle, looks)
    ends = []
    for _ in range(4):
        ends.append(reason(client))
        time.sleep(0.1)
    assert ends == ["timeout"] * 4
    assert handle.sent == 4
    assert looks.count == 1  # within a second one look is enough


def test_an_empty_tier_is_unreachable_until_a_replica_is_up() -> None:
    """After one call that ran out of time the next ones are refused at once; a look a second notices when somebody is back."""
    looks, handle = Looks(running=0), Handle()
    client = client_of(handle, looks)
    assert [reason(client) for _ in range(3)] == ["timeout", "unreachable", "unreachable"]
    assert handle.sent == 1
    looks.running, handle.answer = 1, ANSWER
    until(lambda: reason(client) == "ok")
    assert looks.count == 2
    assert [reason(client) for _ in range(3)] == ["ok"] * 3
    assert looks.count == 2  # nobody doubts it any more


def test_a_look_that_does_not_end_refuses_nobody() -> None:
    """Serve's controller may be busy itself: other threads send their calls meanwhile, and none waits for long."""
    looks, handle = Looks(running=2), Handle()
    client = client_of(handle, looks)
    assert reason(client) == "timeout"
    looks.may_return.clear()
    with ThreadPoolExecutor(8) as pool:
        try:
            assert list(pool.map(lambda _: reason(client), range(8))) == ["timeout"] * 8
            assert asyncio.run(_reason(client)) == "timeout"
        finally:
            looks.may_return.set()
    assert handle.sent == 10
    assert looks.count == 1


async def _reason(client: TierClient) -> str:
    """How one call from an event loop ends."""
    try:
        await client.generate(ASKED, 4, None, client.request_timeout_s)
    except ModelUnavailable as failure:
        return failure.reason
    return "ok"


def test_a_look_that_fails_tells_nothing() -> None:
    """Whether anybody is there is then for the call itself to find out."""
    looks, handle = Looks(running=2), Handle()
    looks.running = RuntimeError("the controller is gone")
    client = client_of(handle, looks)
    assert [reason(client) for _ in range(2)] == ["timeout", "timeout"]
    assert handle.sent == 2


def test_an_empty_tier_behind_the_gateway() -> None:
    """The gateway's own time limit leaves the client the time to notice: the second call is refused instead of waiting too."""
    client = client_of(Handle(), Looks(running=0))
    attempts = Attempts({"edge": client}, None)

    async def ends() -> list[str]:
        found = []
        for _ in range(2):
            until_s = asyncio.get_running_loop().time() + 60.0
            placed = Placed(ChatRequest("edge", ASKED), "edge", 1, call_of(ASKED), Decision("edge", "", 0.0), until_s)
            with pytest.raises(ModelUnavailable) as failure:
                await attempts.whole(placed, "edge")
            found.append(failure.value.reason)
        return found

    assert asyncio.run(ends()) == ["timeout", "unreachable"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_that_cannot_be_sent_is_a_failure_like_others(streamed: bool) -> None:
    """With Serve gone a handle raises as it sends; callers are told that the tier is unreachable, and can go elsewhere."""
    from ray.serve.exceptions import RayServeException

    client = client_of(Handle(broken=RayServeException("Serve is not running")), Looks(running=0))

    async def call() -> None:
        if streamed:
            async for _ in client.stream(ASKED, 4, None, 1.0):
                pass
        else:
            await client.generate(ASKED, 4, None, 1.0)

    with pytest.raises(ModelUnavailable, match="unreachable: edge: RayServeException: Serve is not running"):
        asyncio.run(call())
    assert reason(client) == "unreachable"


def count_none(app: str) -> tuple[int, str]:
    """A look that finds nobody."""
    return 0, app


def test_a_client_travels() -> None:
    """To the gateway's replica, where it starts without doubts about its tier."""
    client = client_of(Handle(answer=None), count_none)
    assert [reason(client) for _ in range(2)] == ["timeout", "unreachable"]
    there = pickle.loads(pickle.dumps(client))  # noqa: S301 - what was just pickled here
    assert (there.tier, there.model, there.app) == (client.tier, client.model, client.app)
    assert [reason(there) for _ in range(2)] == ["timeout", "unreachable"]
