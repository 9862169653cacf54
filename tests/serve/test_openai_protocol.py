"""What the gateway makes of a request's body, and the shapes it answers in."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.openai_answers import (
    Head,
    StopCutter,
    chunk,
    completion,
    encoded,
    event,
    last_chunks,
    retry_after,
    unavailable,
    usage_of,
)
from serve.gateway.openai_protocol import ApiError, ChatRequest, read_chat
from serve.generation import Generation, Sampling
from workloads.errors import ModelUnavailable
from workloads.task import Message

HELLO = [{"role": "user", "content": "hello"}]


def read(**fields: Any) -> ChatRequest:
    """A body with these fields, a model and a message, read."""
    return read_chat(json.dumps({"model": "edge", "messages": HELLO, **fields}).encode())


def refused(body: bytes) -> ApiError:
    """Why a body is refused."""
    with pytest.raises(ApiError) as error:
        read_chat(body)
    assert error.value.status == 400
    document = error.value.body()
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert document["error"]["type"] == "invalid_request_error"
    return error.value


def test_the_least_a_request_can_say() -> None:
    """Model and messages are enough; everything else is left to the model."""
    assert read() == ChatRequest("edge", (Message("user", "hello"),))


def test_what_is_honoured() -> None:
    """Every field that the gateway promises to honour arrives."""
    chat = read(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Nia"},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": []},
            {"role": "tool", "content": "d", "tool_call_id": "1"},
        ],
        max_tokens=5, max_completion_tokens=7, temperature=1, top_p=0.5, seed=-1, stop=["x", "y"], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    messages = (
        Message("system", "Be brief."),
        Message("user", "a\nb"),
        Message("assistant", "c"),
        Message("tool", "d"),
    )
    assert chat == ChatRequest("edge", messages, 7, Sampling(1.0, 0.5, 2**63 - 1), ("x", "y"), True, True)
    assert read(max_tokens=5, stop="end").stop == ("end",)
    assert read(seed=3).sampling == Sampling(seed=3)


def test_a_sampled_answer_without_a_seed_is_another_every_time() -> None:
    """As at OpenAI: only a client that gives a seed asks for the same draws again; a greedy answer has none."""
    drawn = {read(temperature=0.7).sampling for _ in range(10)}
    assert len(drawn) > 1
    assert {(sampling.temperature, sampling.top_p) for sampling in drawn if sampling} == {(0.7, 1.0)}
    assert read(temperature=0.7, seed=5).sampling == Sampling(0.7, seed=5)
    assert read(temperature=0, top_p=0.5).sampling == Sampling(0.0, 0.5)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "user": "someone",
            "metadata": {"a": "b"},
            "store": True,
            "service_tier": "auto",
            "something_new": [1, {"x": None}],
        },
        {"n": 1, "logprobs": False, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}},
        {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "modalities": ["text"], "functions": []},
        dict.fromkeys(("n", "tools", "temperature", "top_p", "seed", "stop", "stream", "max_tokens", "audio")),
    ],
)
def test_what_is_ignored(fields: dict[str, Any]) -> None:
    """Unknown fields, fields without an effect on the answer, and values that ask for nothing change nothing."""
    assert read(**fields) == read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2), ("n", True), ("n", 0), ("logprobs", True), ("top_logprobs", 3), ("frequency_penalty", 0.5),
        ("presence_penalty", -1), ("logit_bias", {"50256": -100}), ("tools", [{"type": "function"}]), ("tool_choice", "required"),
        ("functions", [{}]), ("response_format", {"type": "json_object"}), ("modalities", ["text", "audio"]), ("audio", {}),
        ("reasoning_effort", "high"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(name: str, value: Any) -> None:
    """A field that would change the answer and cannot be honoured is refused by name, with what is allowed."""
    error = refused(json.dumps({"model": "edge", "messages": HELLO, name: value}).encode())
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert "leave it out" in error.message


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": None}, "model", "found null"),
        ({"model": 3}, "model", "found 3"),
        ({"model": ""}, "model", "1 to 256 characters"),
        ({"model": "x" * 300}, "model", "1 to 256 characters"),
        ({"model": "\ud800"}, "model", "surrogate"),
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "hello"}, "messages", 'found "hello"'),
        ({"messages": None}, "messages", "found null"),
        ({"messages": ["hello"]}, "messages[0]", "found"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "found null"),
        ({"messages": [*HELLO, {"role": "usr", "content": "x"}]}, "messages[1].role", "Did you mean 'user'?"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "found null"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "found 5"),
        ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages[0].content", "surrogate"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "found"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "found null"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages[0].content[0].type", '"image_url" is not supported',
        ),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls", "plain text"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": True}, "max_tokens", "found true"),
        ({"max_tokens": 2.5}, "max_tokens", "found 2.5"),
        ({"max_completion_tokens": 10**30}, "max_completion_tokens", "from 1"),
        ({"temperature": 2.1}, "temperature", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", 'found "hot"'),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_p": False}, "top_p", "found false"),
        ({"seed": 2**63}, "seed", "whole number"),
        ({"seed": 0.5}, "seed", "whole number"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "up to 4"),
        ({"stop": [""]}, "stop", "1 to 500"),
        ({"stop": "x" * 501}, "stop", "1 to 500"),
        ({"stop": [1]}, "stop", "a string"),
        ({"stop": {"a": 1}}, "stop", "found an object"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream = true"),
        ({"stream": True, "stream_options": 1}, "stream_options", "an object"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "true or false"),
    ],
)  # fmt: skip
def test_wrong_fields(fields: dict[str, Any], param: str, says: str) -> None:
    """A field that is wrong is named with what was found and what is allowed."""
    error = refused(json.dumps({"model": "edge", "messages": HELLO, **fields}).encode())
    assert error.param == param
    assert says in error.message


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON"),
        (b"[]", "found an array"),
        (b"null", "found null"),
        (b'"hello"', "found a string"),
        (b"{}", "model is missing"),
        (b'{"model": "edge"}', "messages is missing"),
        (b'{"model": "edge", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"model": "edge", "temperature": -Infinity}', "-Infinity is no JSON number"),
        (b'{"model": "edge", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}', "temperature"),
        (b'{"model": "edge", "seed": ' + b"9" * 10_000 + b"}", "too large"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"model": "\xff"}', "not UTF-8 (byte 11)"),
        ('{"model": "edge"}'.encode("utf-16"), "not UTF-8"),
        (b"model=edge&messages=hello", "not JSON"),
        (b'{"model": "edge",}', "not JSON"),
    ],
)
def test_bodies_that_are_no_request(body: bytes, says: str) -> None:
    """Whatever else comes as a body is refused with the reason."""
    assert says in refused(body).message


def json_values() -> st.SearchStrategy[Any]:
    """Any JSON value, numbers without a limit."""
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30)
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=12)  # fmt: skip


@given(json_values() | st.binary(max_size=60))
def test_any_body_is_read_or_refused(found: Any) -> None:
    """Nothing that can be sent raises anything but an ApiError with status 400, itself a document that can be sent."""
    body = found if isinstance(found, bytes) else json.dumps(found).encode()
    refusals: list[ApiError] = []
    try:
        read_chat(body)
    except ApiError as error:
        refusals.append(error)
    assert all(error.status == 400 and encoded(error.body()) for error in refusals)


# ----------------------------------------------------------------------------------------------------------- answers

GENERATION = Generation("4", 10, 2, -0.5, 0.1, 0.2, "stop", cached_tokens=3)


def test_shapes() -> None:
    """Documents hold what OpenAI's clients look for, and the extra field beside it."""
    head = Head.new("isthmus/random@0.5")
    document = completion(head, "4", "stop", GENERATION, {"tier": "edge"})
    assert document["object"] == "chat.completion"
    assert document["id"].startswith("chatcmpl-")
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "4", "refusal": None}
    assert document["usage"] == usage_of(GENERATION) == {
        "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3},
    }  # fmt: skip
    assert document["isthmus"] == {"tier": "edge"}
    (last,) = last_chunks(head, "stop", GENERATION, {"tier": "edge"}, include_usage=False)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["isthmus"] == {"tier": "edge"}
    finish, usage = last_chunks(head, "length", GENERATION, {"tier": "edge"}, include_usage=True)
    assert (finish["choices"][0]["finish_reason"], finish["usage"], usage["choices"]) == ("length", None, [])
    assert usage["usage"] == usage_of(GENERATION)
    assert len({part["id"] for part in (document, last, finish, usage)}) == 1


def test_half_a_character_can_be_sent() -> None:
    """A model's text may hold half of a surrogate pair; it travels escaped and no event breaks on a line end."""
    head = Head.new("edge")
    sent = event(chunk(head, {"content": "\ud83d \n\n data: x"}))
    assert sent.count(b"\n") == 2
    assert json.loads(sent.removeprefix(b"data: "))["choices"][0]["delta"]["content"] == "\ud83d \n\n data: x"


@pytest.mark.parametrize(
    ("reason", "status", "code", "waits"),
    [
        ("timeout", 504, "timeout", False),
        ("rate-limited", 429, "rate_limit_exceeded", True),
        ("rate_limited", 429, "rate_limit_exceeded", True),
        ("overloaded", 429, "overloaded", True),
        ("budget", 429, "insufficient_quota", False),
        ("refused", 502, "upstream_refused", False),
        ("bad-answer", 502, "bad_upstream_answer", False),
        ("unreachable", 503, "unavailable", True),
        ("replica-died", 503, "unavailable", True),
        ("something new", 503, "unavailable", True),
    ],
)
def test_errors_of_tiers(reason: str, status: int, code: str, waits: bool) -> None:
    """Every reason for which a tier cannot answer has its status; details of it are told to nobody."""
    failures = {"edge": ModelUnavailable("timeout", "10.0.0.1", 3.2), "cloud": ModelUnavailable(reason, "sk-secret")}
    error = unavailable(failures)
    assert (error.status, error.code) == (status, code)
    assert error.message == f"No tier could answer (edge: timeout, cloud: {reason.replace('_', '-')})."
    assert error.headers == ({"Retry-After": "4"} if waits else {})


def test_retry_after_is_a_whole_number_of_seconds() -> None:
    """At least one second, rounded up, and never infinite."""
    assert [retry_after(wait_s) for wait_s in (0.0, 0.2, 1.0, 7.1, math.inf, math.nan)] == [1, 1, 1, 8, 1, 1]


@given(
    text=st.text("abc", max_size=30), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), data=st.data()
)
def test_stop_sequences_do_not_depend_on_the_pieces(text: str, stops: list[str], data: st.DataObject) -> None:
    """Text in any pieces is cut where the first complete stop sequence begins, and only what may begin one is held back."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    edges = [0, *cuts, len(text)]
    cutter, sent, longest = StopCutter(tuple(stops)), "", max(map(len, stops), default=1)
    for begin, end in pairwise(edges):
        sent += cutter.feed(text[begin:end])
        assert cutter.cut or end - len(sent) < longest
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert cutter.cut == bool(ends)
    sent += cutter.end()
    if not ends:
        assert sent == text
    else:
        longest_there = max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))
        assert sent == text[: ends[0] - longest_there]
