"""The gateway on a real HTTP server with requests that are wrong: bodies, names, pages, keys, and any JSON there is."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.gateway.calls import GatewayOptions
from tests.serve.gateway_server import QUESTION, Gateway, client_of, error_of, start_gateway, until
from tests.serve.test_openai_protocol import json_values


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    """A gateway over two tiers."""
    with start_gateway() as running:
        yield running


def test_malformed_bodies(gateway: Gateway) -> None:
    """What is no request is refused with a 400 that the official client understands too."""
    for body in (b"", b"{", b"[]", b'{"model": NaN}', b"\xff", b"[" * 50_000):
        assert error_of(gateway.request("/v1/chat/completions", body, "POST"), 400)["type"] == "invalid_request_error"
    with client_of(gateway) as client, pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="edge", messages=QUESTION, n=2)
    assert error.value.param == "n"
    assert error.value.code == "unsupported_parameter"
    until(lambda: len(gateway.records) == 7)
    assert {record.status for record in gateway.records} == {400}


def test_oversized_bodies() -> None:
    """A body above the limit is refused before it is read, announced or not, and the next request is served."""
    with start_gateway(GatewayOptions(max_body_bytes=10_000)) as gateway:
        assert (
            error_of(gateway.chat(messages=[{"role": "user", "content": "x" * 20_000}]), 413)["code"]
            == "body_too_large"
        )
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        parts = (b"x" * 1000 for _ in range(11))
        connection.request(
            "POST", "/v1/chat/completions", parts, {"Content-Type": "application/json"}, encode_chunked=True
        )
        assert connection.getresponse().status == 413
        connection.close()
        with client_of(gateway) as client:
            big: Any = [{"role": "user", "content": "x" * 3_000_000}]
            with pytest.raises(openai.APIStatusError) as error:
                client.chat.completions.create(model="edge", messages=big)
            assert error.value.status_code == 413
            assert client.chat.completions.create(model="edge", messages=QUESTION).choices
        until(lambda: len(gateway.records) == 4)
        assert [record.status for record in gateway.records] == [413, 413, 413, 200]


def test_slow_bodies() -> None:
    """A body that does not come is not waited for."""
    with start_gateway(GatewayOptions(body_timeout_s=0.3)) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as line:
            line.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert b" 408 " in line.recv(100)
        until(lambda: bool(gateway.records))
        assert gateway.records[0].status == 408


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "application/JSON"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "application/json; charset=latin-1"}, 415),
        ({"Content-Encoding": "gzip"}, 415),
        ({"X-Isthmus-Request": "12"}, 200),
        ({"X-Isthmus-Request": "-1"}, 400),
        ({"X-Isthmus-Request": "1e3"}, 400),
        ({"X-Isthmus-Request": "9" * 30}, 400),
        ({"X-Isthmus-Request": "12", "X-Isthmus-Position": "7", "X-Isthmus-Branch": "2"}, 200),
        ({"X-Isthmus-Request": "12", "X-Isthmus-Branch": "0"}, 200),
        ({"X-Isthmus-Request": "12", "X-Isthmus-Branch": "2"}, 400),
        ({"X-Isthmus-Position": "7", "X-Isthmus-Branch": "2"}, 400),
        ({"X-Isthmus-Request": "12", "X-Isthmus-Position": "-7"}, 400),
    ],
)
def test_headers(gateway: Gateway, headers: dict[str, str], status: int) -> None:
    """JSON in UTF-8 is taken, anything else refused by its header; a request's number is a small whole number, a branch needs it and a place."""
    body = json.dumps({"model": "edge", "messages": QUESTION}).encode()
    response = gateway.request("/v1/chat/completions", body, headers=headers)
    assert response.status == status
    if status != 200:
        error_of(response, status)
    elif "X-Isthmus-Request" in headers:
        assert response.document["isthmus"]["request"] == 12
        assert response.document["isthmus"]["position"] == int(headers.get("X-Isthmus-Position", 0))


def test_wrong_model_names(gateway: Gateway) -> None:
    """An unknown model is the client's NotFoundError, with the nearest names."""
    with client_of(gateway) as client:
        with pytest.raises(openai.NotFoundError) as error:
            client.chat.completions.create(model="isthmus/by-lenght", messages=QUESTION)
        assert error.value.code == "model_not_found"
        assert "Did you mean 'isthmus/by-length'?" in error.value.message
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-4o")
        assert error_of(gateway.chat(model="\u0007\u00e9\n"), 404)["param"] == "model"


def test_models(gateway: Gateway) -> None:
    """The official client lists the models and finds each, slashes in their names included."""
    with client_of(gateway) as client:
        names = [model.id for model in client.models.list()]
        assert names == ["isthmus/by-length", "edge", "cloud"]
        for name in names:
            assert client.models.retrieve(name).id == name


def test_pages_that_are_not_there(gateway: Gateway) -> None:
    """Unknown paths and methods are answered in OpenAI's words."""
    assert error_of(gateway.request("/v1/completions", b"{}"), 404)["code"] == "not_found"
    assert error_of(gateway.request("/"), 404)["message"] == "GET /: there is nothing here."
    wrong = gateway.request("/v1/chat/completions")
    assert error_of(wrong, 405)["code"] == "method_not_allowed"
    assert wrong.headers["allow"] == "POST"
    assert error_of(gateway.request("/v1/models", b"{}"), 405)["code"] == "method_not_allowed"


def test_a_key() -> None:
    """With a key set, whoever does not show it learns nothing; the health page is open."""
    with start_gateway(GatewayOptions(key_sha256=hashlib.sha256(b"open sesame").digest())) as gateway:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic open sesame"},
            {"Authorization": "é"},
        ):
            refused = gateway.request("/v1/models", headers=headers)
            assert error_of(refused, 401)["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError):
                client.chat.completions.create(model="edge", messages=QUESTION)
            answer = client.with_options(api_key="open sesame").chat.completions.create(model="edge", messages=QUESTION)
            assert answer.choices[0].message.content
        assert gateway.request("/healthz").status == 200
        assert "sesame" not in repr(gateway.calls.options)


def test_request_ids(gateway: Gateway) -> None:
    """Every answer has a request id; one that the client gives is kept if it is fit to be printed."""
    assert gateway.chat().headers["x-request-id"] != gateway.chat().headers["x-request-id"]
    for sent, kept in (("abc-1", True), ("a b", False), ("x" * 200, False)):
        assert (gateway.request("/v1/models", headers={"X-Request-ID": sent}).headers["x-request-id"] == sent) is kept
    assert gateway.request("/nowhere").headers["x-request-id"]


NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "n",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "seed",
        "max_tokens",
        "tools",
        "logprobs",
    ]
)


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Gateway]:
    """One gateway for many requests."""
    with start_gateway() as running:
        yield running


@settings(max_examples=150, deadline=None)
@given(document=json_values() | st.dictionaries(NAMES, json_values(), max_size=3))
def test_any_json_is_answered(fuzzed: Gateway, document: Any) -> None:
    """Whatever JSON comes, alone or in place of fields of a good request, the answer is 200 or an error of the client's."""
    documents = [document]
    if isinstance(document, dict):
        documents.append({"model": "edge", "messages": QUESTION, **document})
    for body in documents:
        response = fuzzed.request("/v1/chat/completions", json.dumps(body).encode())
        assert response.status in (200, 400, 404), response.body
        if response.status != 200:
            error_of(response, response.status)
