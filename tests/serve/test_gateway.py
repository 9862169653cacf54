"""The gateway on a real HTTP server with the official client: answers, clients that hang up, tiers that fail."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import openai
import pytest

from serve.gateway.calls import GatewayOptions
from serve.generation import Sampling
from tests.serve.gateway_server import (
    PATIENCE_S,
    QUESTION,
    Gateway,
    WordTier,
    client_of,
    error_of,
    start_gateway,
    until,
)
from workloads.errors import ModelUnavailable
from workloads.placing import FIRST_UNNUMBERED
from workloads.task import Message


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway over two tiers."""
    with start_gateway() as running:
        yield running


# -------------------------------------------------------------------------------------------------- the official client


def test_plain_answer(gateway: Gateway) -> None:
    """The official client reads answer, usage and the extra field; the headers say the same."""
    with client_of(gateway) as client:
        raw = client.chat.completions.with_raw_response.create(model="isthmus/by-length", messages=QUESTION)
        answer = raw.parse()
    assert answer.choices[0].message.content == "huge heard: how are you today"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "isthmus/by-length"
    usage = answer.usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 6, 12)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 1
    assert answer.model_extra is not None
    extra = answer.model_extra["isthmus"]
    assert extra["request"] >= FIRST_UNNUMBERED
    assert {name: extra[name] for name in ("tier", "model", "placed_on", "position", "decision_s", "cost_usd", "energy_j")} == {
        "tier": "cloud", "model": "huge", "placed_on": "cloud", "position": 0, "decision_s": 0.000125,
        "cost_usd": pytest.approx(12e-5), "energy_j": 24.0,
    }  # fmt: skip
    assert raw.headers["x-isthmus-tier"] == "cloud"
    assert raw.headers["x-isthmus-reason"] == "length ??"  # Greek letters and line ends cannot stand in a header
    assert float(raw.headers["x-isthmus-cost-usd"]) == pytest.approx(12e-5)
    assert float(raw.headers["x-isthmus-energy-j"]) == 24.0
    assert float(raw.headers["x-isthmus-decision-s"]) == 0.000125
    until(lambda: bool(gateway.records))
    assert gateway.records[-1].status == 200
    assert gateway.records[-1].completion_tokens == 6


def test_streamed_answer(gateway: Gateway) -> None:
    """A streamed answer has the text, the usage and the extra field of the plain one."""
    with client_of(gateway) as client:
        plain = client.chat.completions.create(model="cloud", messages=QUESTION)
        options: Any = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(model="cloud", messages=QUESTION, stream=True, stream_options=options)
        )
        bare = list(client.chat.completions.create(model="cloud", messages=QUESTION, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage == plain.usage
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None and chunk.choices for chunk in bare)
    for last in (chunks[-1], bare[-1]):
        assert last.model_extra is not None
        assert plain.model_extra is not None
        assert last.model_extra["isthmus"] == plain.model_extra["isthmus"]


def test_what_reaches_the_tier(gateway: Gateway) -> None:
    """Messages, limit and sampling arrive as they were sent; without them the model's own count."""
    with client_of(gateway) as client:
        answer = client.chat.completions.create(model="edge", messages=QUESTION, max_tokens=3, temperature=0.5, seed=9)
        client.chat.completions.create(model="edge", messages=QUESTION)
    messages = (Message("system", "Be brief."), Message("user", "how are you today"))
    assert gateway.tiers["edge"].asked == [(messages, 3, Sampling(0.5, 1.0, 9)), (messages, None, None)]
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "tiny heard: how"


async def _many(gateway: Gateway, count: int) -> tuple[int, int]:
    """`count` calls at once, every other one streamed; returns the tokens of all answers (prompt, completion)."""
    totals = [0, 0]
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:

        async def call(number: int) -> None:
            words = " ".join(f"word{number}" for _ in range(1 + number % 7))
            messages: list[Any] = [{"role": "user", "content": words}]
            model = "isthmus/by-length"
            if number % 2:
                answer = await client.chat.completions.create(model=model, messages=messages)
                text, usage = answer.choices[0].message.content, answer.usage
            else:
                text, usage = "", None
                options: Any = {"include_usage": True}
                async with await client.chat.completions.create(
                    model=model, messages=messages, stream=True, stream_options=options
                ) as stream:
                    async for chunk in stream:
                        text += chunk.choices[0].delta.content or "" if chunk.choices else ""
                        usage = chunk.usage or usage
            tier = "huge" if len(words) > 20 else "tiny"
            assert text == f"{tier} heard: {words}"
            assert usage is not None
            assert (usage.prompt_tokens, usage.completion_tokens) == (1 + number % 7, 3 + number % 7)
            totals[0] += usage.prompt_tokens
            totals[1] += usage.completion_tokens

        await asyncio.gather(*(call(number) for number in range(count)))
    return totals[0], totals[1]


@pytest.mark.slow
def test_200_calls_at_once() -> None:
    """Everyone gets their own answer, nothing is lost, and the usage adds up to what the tiers generated."""
    with start_gateway(edge=WordTier("tiny", token_s=0.02), cloud=WordTier("huge", token_s=0.02)) as gateway:
        prompt, completion = asyncio.run(_many(gateway, 200))
        until(lambda: len(gateway.records) == 200)
        assert {record.status for record in gateway.records} == {200}
        assert sum(record.prompt_tokens for record in gateway.records) == prompt == sum(1 + n % 7 for n in range(200))
        assert sum(record.completion_tokens for record in gateway.records) == completion == prompt + 400
        assert sum(tier.started for tier in gateway.tiers.values()) == 200
        assert gateway.calls.in_flight == 0
        assert all(load.active == load.waiting == 0 for load in gateway.calls.load().values())
        loads = [load["edge"] for _, _, _, load in gateway.placer.placed]
        assert max(load.waiting for load in loads) > 0  # policies saw the queue build up
        assert max(load.active for load in loads) == 4


# ------------------------------------------------------------------------------------------------- clients that hang up


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up(stream: bool) -> None:
    """The generation is cancelled and its slot free as soon as the client is gone, in the middle of an answer."""
    with start_gateway(edge=WordTier("tiny", token_s=0.2)) as gateway:
        tier = gateway.tiers["edge"]
        messages = [{"role": "user", "content": "a long story " * 100}]
        body = json.dumps({"model": "edge", "messages": messages, "stream": stream})
        with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)) as connection:
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            if stream:
                with connection.getresponse() as response:
                    assert b"assistant" in response.readline()
            else:
                until(lambda: tier.active == 1)
        until(lambda: tier.active == 0)
        assert tier.cancelled == 1
        until(lambda: bool(gateway.records))
        assert gateway.records[0].status == 499
        assert gateway.records[0].tier == "edge"
        assert gateway.calls.in_flight == 0
        assert gateway.calls.load()["edge"].active == 0


def test_the_official_client_hangs_up() -> None:
    """Closing the client's stream frees the slot, and the gateway goes on."""
    with start_gateway(edge=WordTier("tiny", token_s=0.2)) as gateway, client_of(gateway) as client:
        messages: list[Any] = [{"role": "user", "content": "word " * 500}]
        with client.chat.completions.create(model="edge", messages=messages, stream=True) as stream:
            assert next(iter(stream)).choices[0].delta.role == "assistant"
        until(lambda: gateway.tiers["edge"].cancelled == 1)
        assert client.chat.completions.create(model="cloud", messages=QUESTION).choices[0].message.content


def test_a_client_that_hangs_up_while_sending(gateway: Gateway) -> None:
    """Half a body and then nothing is counted and harms nobody."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as line:
        line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.2)
    until(lambda: bool(gateway.records))
    assert gateway.records[0].status == 499
    assert gateway.chat().status == 200


# ------------------------------------------------------------------------------------------------------ when tiers fail


@pytest.mark.parametrize("stream", [False, True])
def test_fail_over(gateway: Gateway, stream: bool) -> None:
    """When the tier that was decided on fails before its first token, the other one answers and the reason says so."""
    gateway.tiers["edge"].failing = ModelUnavailable("replica-died", "worker 17 on 10.0.0.1")
    response = gateway.chat(model="isthmus/by-length", stream=stream)
    assert response.status == 200
    assert response.headers["x-isthmus-tier"] == "cloud"
    assert response.headers["x-isthmus-reason"] == "fail-over from edge: replica-died"
    body = response.body.decode()
    extra = json.loads(body.split("data: ")[-2])["isthmus"] if stream else json.loads(body)["isthmus"]
    assert (extra["tier"], extra["placed_on"], extra["reason"]) == (
        "cloud",
        "edge",
        "fail-over from edge: replica-died",
    )
    assert "10.0.0.1" not in body
    until(lambda: bool(gateway.records))
    record = gateway.records[0]
    assert (record.status, record.tier, record.failed_over) == (200, "cloud", True)


@pytest.mark.parametrize("stream", [False, True])
def test_no_tier_can_answer(gateway: Gateway, stream: bool) -> None:
    """When every tier fails the client learns the reasons and how long to wait, in the status that fits the last one."""
    gateway.tiers["edge"].failing = ModelUnavailable("unreachable", "10.0.0.1")
    gateway.tiers["cloud"].failing = ModelUnavailable("rate-limited", "try later", 7.5)
    response = gateway.chat(model="isthmus/by-length", stream=stream)
    message = "No tier could answer (edge: unreachable, cloud: rate-limited)."
    assert error_of(response, 429)["message"] == message
    assert response.headers["retry-after"] == "8"
    with client_of(gateway) as client, pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="isthmus/by-length", messages=QUESTION[:1], stream=stream)
    assert [tier.active for tier in gateway.tiers.values()] == [0, 0]


def test_no_fail_over_where_none_is_wanted() -> None:
    """A tier asked for by name answers itself or not at all; the gateway's option switches fail-over off altogether."""
    for options, model in ((GatewayOptions(), "edge"), (GatewayOptions(fail_over=False), "isthmus/by-length")):
        with start_gateway(options) as gateway:
            gateway.tiers["edge"].failing = ModelUnavailable("replica-died")
            response = gateway.chat(model=model)
            assert error_of(response, 503)["message"] == "No tier could answer (edge: replica-died)."
            assert response.headers["retry-after"] == "1"
            assert gateway.tiers["cloud"].started == 0


def test_a_failure_in_the_middle_of_a_stream(gateway: Gateway) -> None:
    """Half an answer is not continued by another model: the stream ends with an error event, which the client raises."""
    tier = gateway.tiers["edge"]
    tier.failing, tier.fails_after = ModelUnavailable("replica-died"), 2
    heard: list[Any] = []
    with client_of(gateway) as client:
        stream = client.chat.completions.create(
            model="isthmus/by-length", messages=[{"role": "user", "content": "a b"}], stream=True
        )
        with pytest.raises(openai.APIError) as error:
            heard.extend(chunk.choices[0].delta.content for chunk in stream)
    assert heard == ["", "tiny", " heard:"]
    assert "edge: replica-died" in error.value.message
    assert gateway.tiers["cloud"].started == 0
    until(lambda: bool(gateway.records))
    assert gateway.records[0].status == 503


@pytest.mark.parametrize("stream", [False, True])
def test_timeouts(stream: bool) -> None:
    """A tier that is too slow is given up and its call cancelled; with an attempt timeout the other tier has its turn."""
    options = GatewayOptions(timeout_s=30.0, attempt_timeout_s=0.2)
    with start_gateway(options, edge=WordTier("tiny", token_s=60.0)) as gateway:
        response = gateway.chat(model="isthmus/by-length", stream=stream)
        assert response.status == 200
        assert response.headers["x-isthmus-reason"] == "fail-over from edge: timeout"
        assert error_of(gateway.chat(model="edge", stream=stream), 504)["code"] == "timeout"
        assert gateway.tiers["edge"].cancelled == 2
        assert gateway.tiers["edge"].active == 0


def test_overload() -> None:
    """Calls beyond the limit are refused at once with Retry-After, which the official client follows."""
    with (
        start_gateway(GatewayOptions(max_in_flight=1), edge=WordTier("tiny", token_s=0.3)) as gateway,
        client_of(gateway) as client,
    ):
        with client.chat.completions.create(model="edge", messages=QUESTION, stream=True) as stream:
            next(iter(stream))
            refused = gateway.chat(model="cloud")
            assert error_of(refused, 429)["code"] == "overloaded"
            assert refused.headers["retry-after"] == "1"
        until(lambda: gateway.calls.in_flight == 0)
        assert gateway.chat(model="cloud").status == 200


@pytest.mark.parametrize("place", ["placer", "tier", "stream"])
def test_errors_of_our_own(gateway: Gateway, place: str, caplog: pytest.LogCaptureFixture) -> None:
    """What nobody foresaw is a 500 that tells the client nothing of the inside and the log everything."""
    broken = RuntimeError("secret inside")
    if place == "placer":
        gateway.placer.failing = broken
    else:
        gateway.tiers["edge"].failing = broken
    with caplog.at_level(logging.ERROR):
        response = gateway.chat(stream=place == "stream")
        until(lambda: bool(gateway.records))
    assert error_of(response, 500)["code"] == "internal_error"
    assert b"secret" not in response.body
    assert "secret inside" in caplog.text
    assert response.headers["x-request-id"] in caplog.text
    assert gateway.records[0].status == 500
    gateway.placer.failing = gateway.tiers["edge"].failing = None
    assert gateway.chat().status == 200


def test_health(gateway: Gateway) -> None:
    """Healthy while every tier has a replica that answers, else 503 with the reason of each tier that has not."""
    assert gateway.request("/healthz").document == {
        "status": "ok",
        "tiers": {"edge": {"healthy": True, "reason": ""}, "cloud": {"healthy": True, "reason": ""}},
    }
    gateway.tiers["edge"].sick, gateway.tiers["cloud"].sick = "no replica runs", "raises"
    response = gateway.request("/healthz")
    assert response.status == 503
    assert response.document["tiers"] == {
        "edge": {"healthy": False, "reason": "no replica runs"},
        "cloud": {"healthy": False, "reason": "its health is unknown"},
    }


def test_health_is_not_waited_for() -> None:
    """A tier that does not say how it is counts as ill."""
    with start_gateway(GatewayOptions(health_timeout_s=0.2)) as gateway:
        gateway.tiers["edge"].sick = "hangs"
        reason = gateway.request("/healthz").document["tiers"]["edge"]["reason"]
        assert reason == "no replica answered within 0.2 s"


# ---------------------------------------------------------------------------------------------------------- the small print


def test_stop_sequences(gateway: Gateway) -> None:
    """The text ends before a stop sequence, plain and streamed; the usage says what was generated."""
    with client_of(gateway) as client:
        plain = client.chat.completions.create(model="edge", messages=QUESTION, stop=["u t", "nothing"])
        stream = client.chat.completions.create(
            model="edge", messages=QUESTION, stop=["u t"], stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert plain.choices[0].message.content == "tiny heard: how are yo"
    assert plain.choices[0].finish_reason == "stop"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "tiny heard: how are yo"
    assert chunks[-1].usage == plain.usage
    assert plain.usage is not None
    assert plain.usage.completion_tokens == 6


def test_identity(gateway: Gateway) -> None:
    """A conversation keeps its request number from call to call and counts its position; a given number takes its place."""
    talk = [*QUESTION, {"role": "assistant", "content": "fine"}, {"role": "user", "content": "good"}]
    first, second = (gateway.chat(model="edge", messages=messages).document["isthmus"] for messages in (QUESTION, talk))
    assert first["request"] == second["request"] >= FIRST_UNNUMBERED
    assert (first["position"], second["position"]) == (0, 1)
    other = gateway.chat(model="edge", messages=[*QUESTION[:1], {"role": "user", "content": "?"}]).document["isthmus"]
    assert other["request"] != first["request"]
    (_, request, call, _) = gateway.placer.placed[1]
    assert (request, call.position, call.task.prompt) == (first["request"], 1, "how are you today")
