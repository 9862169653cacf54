"""The gateway's limits on a real HTTP server: slow tiers, slow policies, clients that do not read, and what was lost on the way."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from serve.gateway.attempts import Lost
from serve.gateway.calls import GatewayOptions
from tests.serve.gateway_server import PATIENCE_S, WordPlacer, WordTier, error_of, start_gateway, until
from workloads.errors import ModelUnavailable
from workloads.placing import Charge, Decision, TierLoad
from workloads.task import ModelCall

# --------------------------------------------------------------------------------------------------------------- tiers


@pytest.mark.parametrize(
    ("options", "limit_s"),
    [
        (GatewayOptions(), 40.0),
        (GatewayOptions(attempt_timeout_s=30.0), 30.0),
        (GatewayOptions(attempt_timeout_s=90.0), 40.0),
        (GatewayOptions(timeout_s=20.0), 20.0),
    ],
    ids=["the tier's own", "an attempt's", "the tier's own, which is shorter", "what is left of the call"],
)
def test_how_long_a_tier_may_take(options: GatewayOptions, limit_s: float) -> None:
    """The shortest of the tier's limit, an attempt's and what is left of the call's time."""
    with start_gateway(options) as gateway:
        gateway.tiers["edge"].request_timeout_s = 40.0
        for stream in (False, True):
            assert gateway.chat(stream=stream).status == 200
        assert all(limit_s - 5.0 < given_s <= limit_s for given_s in gateway.tiers["edge"].limits_s)


@pytest.mark.parametrize("stream", [False, True])
def test_a_tier_that_hangs(stream: bool) -> None:
    """Without any option the other tier has its turn as soon as the tier's own time is over."""
    with start_gateway(edge=WordTier("tiny", token_s=10 * PATIENCE_S)) as gateway:
        gateway.tiers["edge"].request_timeout_s = 0.2
        response = gateway.chat(model="isthmus/by-length", stream=stream)
        assert response.status == 200
        assert response.headers["x-isthmus-reason"] == "fail-over from edge: timeout"
        assert gateway.tiers["edge"].cancelled == 1


# ------------------------------------------------------------------------------------------------------------ policies


class SlowPlacer(WordPlacer):
    """Its policies take their time: to get ready under the name `unlisted`, to place under every other name."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def names(self) -> tuple[str, ...]:
        return tuple(name for name in super().names() if name != "cloud")

    def check(self, model_name: str) -> str:
        return model_name

    def prepare(self, model_name: str) -> None:
        time.sleep(self.seconds)

    def place(self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad]) -> Decision:
        if model_name == "edge":
            time.sleep(self.seconds)
        return super().place(model_name, request, call, load)


@pytest.mark.parametrize("model", ["edge", "cloud"], ids=["placing", "preparing"])
def test_a_policy_that_takes_too_long(model: str) -> None:
    """Its time is part of the call's: a client is not kept waiting for a decision beyond it."""
    with start_gateway(GatewayOptions(timeout_s=0.3), SlowPlacer(2.0)) as gateway:
        error = error_of(gateway.chat(model=model), 504)
        assert (error["code"], error["message"]) == (
            "timeout",
            "The policy took longer than 0.3 s, which is the limit of a call.",
        )
        assert gateway.tiers[model].started == 0
        assert gateway.calls.in_flight == 0


class WatchedPlacer(WordPlacer):
    """Notes when it is entered by two at a time; what it does takes long enough for that."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.charged = 0
        self.shared = False

    def _enter(self) -> None:
        self.inside += 1
        self.shared |= self.inside > 1
        time.sleep(0.005)
        self.shared |= self.inside > 1
        self.inside -= 1

    def place(self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad]) -> Decision:
        self._enter()
        return super().place(model_name, request, call, load)

    def charge(self, *arguments: Any, **named: Any) -> Charge:
        self._enter()
        self.charged += 1
        return super().charge(*arguments, **named)


def test_placing_and_charging_take_turns() -> None:
    """Both change what the policies know, so they never meet, however many calls are under way."""
    placer = WatchedPlacer()
    with start_gateway(None, placer) as gateway, ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda number: gateway.chat(model="edge", stream=number % 2 == 0).status, range(40))
        assert set(answers) == {200}
    assert (placer.charged, placer.shared) == (40, False)


def test_charging_keeps_nobody_waiting() -> None:
    """While one answer's cost is worked out, other calls are answered: it is not done on the event loop."""
    charging = threading.Event()
    go_on = threading.Event()

    class Held(WordPlacer):
        def charge(self, *arguments: Any, **named: Any) -> Charge:
            charging.set()
            go_on.wait(PATIENCE_S)
            return super().charge(*arguments, **named)

    with start_gateway(None, Held()) as gateway, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(gateway.chat)
        try:
            assert charging.wait(PATIENCE_S)
            assert gateway.request("/v1/models").status == 200
        finally:
            go_on.set()
        assert answer.result().status == 200


# ------------------------------------------------------------------------------------------------------- slow clients


def test_a_client_that_does_not_read() -> None:
    """It is hung up on, and its slot and the tier's are free, although it stays on the line."""
    options = GatewayOptions(send_timeout_s=0.5, max_body_bytes=50_000_000)
    with start_gateway(options) as gateway, closing(socket.socket()) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", gateway.port))
        content = " ".join(["x" * 1_000_000] * 20)  # far more than the sockets hold
        document = {"model": "edge", "messages": [{"role": "user", "content": content}], "stream": True}
        body = json.dumps(document).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body)
        until(lambda: bool(gateway.records))
        record = gateway.records[0]
        assert (record.status, record.tier, record.lost) == (499, "edge", (Lost("edge", "cancelled"),))
        assert gateway.tiers["edge"].active == gateway.calls.in_flight == 0
        assert gateway.chat().status == 200


# ----------------------------------------------------------------------------------------- what may have been paid for


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reason", "lost"),
    [("replica-died", (Lost("edge", "replica-died"),)), ("overloaded", ())],
    ids=["begun", "refused"],
)
def test_a_failed_attempt_is_counted(stream: bool, reason: str, lost: tuple[Lost, ...]) -> None:
    """An attempt that failed after it was begun may be on a bill, though another tier answered; a refused one is not."""
    with start_gateway() as gateway:
        gateway.tiers["edge"].failing = ModelUnavailable(reason)
        assert gateway.chat(model="isthmus/by-length", stream=stream).status == 200
        until(lambda: bool(gateway.records))
        record = gateway.records[0]
        assert (record.tier, record.status, record.lost) == ("cloud", 200, lost)


@pytest.mark.parametrize("stream", [False, True])
def test_an_abandoned_attempt_is_counted(stream: bool) -> None:
    """A client that hangs up pays nothing; what its call had cost by then is not in the ledger, but the attempt is counted."""
    with start_gateway(edge=WordTier("tiny", token_s=0.2)) as gateway:
        messages = [{"role": "user", "content": "a long story " * 100}]
        body = json.dumps({"model": "edge", "messages": messages, "stream": stream})
        with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE_S)) as connection:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            until(lambda: gateway.tiers["edge"].active == 1)
        until(lambda: bool(gateway.records))
        record = gateway.records[0]
        assert (record.status, record.cost_usd, record.lost) == (499, 0.0, (Lost("edge", "cancelled"),))


def test_an_answer_leaves_nothing_to_count() -> None:
    """Neither plain nor streamed, also when the answer is cut at a stop sequence."""
    with start_gateway() as gateway:
        for fields in ({}, {"stream": True}, {"stream": True, "stop": "heard"}):
            assert gateway.chat(**fields).status == 200
        until(lambda: len(gateway.records) == 3)
        assert [record.lost for record in gateway.records] == [(), (), ()]
