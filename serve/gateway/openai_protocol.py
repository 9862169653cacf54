"""Chat requests as OpenAI's clients send them: read, checked field by field, and refused in OpenAI's words.

What is honoured: model, messages (text), max_tokens and max_completion_tokens, temperature, top_p, seed, stop, stream and
stream_options.include_usage. Fields that would change the answer and cannot be honoured are refused unless they hold the value
that means nothing; all others are ignored.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from serve.generation import Sampling
from workloads.errors import suggest
from workloads.task import Message

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles of a message -> what the models know them as."""
MAX_STOPS = 4
_NAME_CHARACTERS = 256
_STOP_CHARACTERS = 500
_MOST_TOKENS = 10_000_000
_LONGEST_SHOWN = 60

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}
"""Fields that no tier can honour, and the values that ask for nothing. Null always does."""


class ApiError(Exception):
    """An error as OpenAI's API reports it: an HTTP status and {"error": {"message", "type", "param", "code"}}."""

    def __init__(
        self, status: int, message: str, *, kind: str = "invalid_request_error", param: str | None = None,
        code: str | None = None, headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """The JSON document of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request. `sampling` is None, the model's own, unless the client sets part of it; the rest is then greedy."""

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    sampling: Sampling | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


def read_chat(body: bytes) -> ChatRequest:
    """A request's body, checked. Raises ApiError (400) that names the field."""
    document = _parsed(body)
    if not isinstance(document, dict):
        raise ApiError(400, f"The body must be a JSON object, found {_kind(document)}.")
    _refuse_what_cannot_be_honoured(document)
    stream = _boolean(document, "stream")
    return ChatRequest(
        _model(document), _messages(document), _max_tokens(document), _sampling(document), _stop(document), stream,
        _include_usage(document, stream=stream),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ documents


def _parsed(body: bytes) -> Any:
    if not body.strip():
        raise ApiError(400, "The body is empty. Send a JSON object with model and messages.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8 (byte {error.start}).") from None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).") from None
    except ValueError:  # an integer with thousands of digits
        raise ApiError(400, "The body holds a number that is too large.") from None


def _no_constant(name: str) -> NoReturn:
    raise ApiError(400, f"The body is not JSON: {name} is no JSON number.")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names[type(value)]


def _shown(value: Any) -> str:
    """A value in a message, cut short: `0.5`, `"hello"`, an object."""
    if isinstance(value, (dict, list)):
        return _kind(value)
    text = json.dumps(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _wrong(param: str, value: Any, allowed: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"Invalid {param}: found {_shown(value)}. Allowed: {allowed}.", param=param, code=code)


def _refuse_what_cannot_be_honoured(document: Mapping[str, Any]) -> None:
    for name, neutral in _NEUTRAL.items():
        value = document.get(name)
        if value is not None and not any(_same(value, allowed) for allowed in neutral):
            message = f"{name} = {_shown(value)} is not supported here"
            remedy = f"leave it out or use {json.dumps(neutral[0])}" if neutral else "leave it out"
            raise ApiError(400, f"{message}: {remedy}.", param=name, code="unsupported_parameter")


def _same(value: Any, allowed: Any) -> bool:
    """Equal, with true not the same as 1."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


# --------------------------------------------------------------------------------------------------------------- fields


def _model(document: Mapping[str, Any]) -> str:
    if "model" not in document:
        raise ApiError(
            400, "model is missing. GET /v1/models lists the names.", param="model", code="missing_required_parameter"
        )
    model = _text(document["model"], "model")
    if not model or len(model) > _NAME_CHARACTERS:
        raise _wrong("model", model, f"a name of 1 to {_NAME_CHARACTERS} characters")
    return model


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise _wrong(param, value, "a string", "invalid_type")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ApiError(
            400,
            f"Invalid {param}: it holds half of a surrogate pair (\\ud800 to \\udfff).",
            param=param,
            code="invalid_value",
        ) from None
    return value


def _messages(document: Mapping[str, Any]) -> tuple[Message, ...]:
    found = document.get("messages")
    if "messages" not in document:
        raise ApiError(400, "messages is missing.", param="messages", code="missing_required_parameter")
    if not isinstance(found, list) or not found:
        raise _wrong("messages", found, "an array with at least one message", "invalid_type")
    return tuple(_message(message, f"messages[{index}]") for index, message in enumerate(found))


def _message(found: Any, param: str) -> Message:
    if not isinstance(found, dict):
        raise _wrong(param, found, "an object with role and content", "invalid_type")
    role = _text(found.get("role"), f"{param}.role")
    if role not in ROLES:
        raise _wrong(f"{param}.role", role, suggest(role, ROLES).replace("Allowed: ", ""))
    for name in ("tool_calls", "function_call", "audio"):
        if found.get(name):
            raise ApiError(
                400, f"{param}.{name} is not supported here: tools are called in plain text.", param=f"{param}.{name}",
                code="unsupported_parameter",
            )  # fmt: skip
    return Message(ROLES[role], _content(found.get("content"), f"{param}.content"))


def _content(found: Any, param: str) -> str:
    if not isinstance(found, list):
        return _text(found, param)
    return "\n".join(_part(part, f"{param}[{index}]") for index, part in enumerate(found))


def _part(found: Any, param: str) -> str:
    if not isinstance(found, dict):
        raise _wrong(param, found, 'an object such as {"type": "text", "text": "..."}', "invalid_type")
    kind = _text(found.get("type"), f"{param}.type")
    if kind != "text":
        problem = f"{param}: a part of type {_shown(kind)} is not supported here, the models read text only"
        raise ApiError(400, f"{problem}.", param=f"{param}.type", code="unsupported_content")
    return _text(found.get("text"), f"{param}.text")


def _max_tokens(document: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):  # of both the newer name counts, as at OpenAI
        value = document.get(name)
        if value is not None:
            return _whole(value, name, 1, _MOST_TOKENS)
    return None


def _sampling(document: Mapping[str, Any]) -> Sampling | None:
    given: dict[str, Any] = {}
    for name, above in (("temperature", False), ("top_p", True)):
        value = document.get(name)
        if value is not None:
            given[name] = _number(value, name, 0.0, 1.0 if above else 2.0, above=above)
    if document.get("seed") is not None:
        # Negative seeds are as good as others to a client; the models count theirs from 0.
        given["seed"] = _whole(document["seed"], "seed", -(2**63), 2**63 - 1) & (2**63 - 1)
    elif given.get("temperature"):
        given["seed"] = secrets.randbits(31)  # without one the models draw the same every time
    return Sampling(**given) if given else None


def _stop(document: Mapping[str, Any]) -> tuple[str, ...]:
    found = document.get("stop")
    if found is None:
        return ()
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise _wrong("stop", found, f"a string or an array of up to {MAX_STOPS} strings", "invalid_type")
    texts = tuple(_text(stop, "stop") for stop in stops)
    if not all(0 < len(text) <= _STOP_CHARACTERS for text in texts):
        raise _wrong("stop", found, f"strings of 1 to {_STOP_CHARACTERS} characters")
    return texts


def _include_usage(document: Mapping[str, Any], *, stream: bool) -> bool:
    options = document.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, "an object", "invalid_type")
    if not stream:
        raise ApiError(
            400, "stream_options is only allowed with stream = true.", param="stream_options", code="invalid_value"
        )
    return _boolean(options, "include_usage", "stream_options.")


def _boolean(document: Mapping[str, Any], name: str, prefix: str = "") -> bool:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise _wrong(prefix + name, value, "true or false", "invalid_type")
    return bool(value)


def _whole(value: Any, param: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(param, value, "a whole number", "invalid_type")
    if not low <= value <= high:
        raise _wrong(param, value, f"a whole number from {low} to {high}")
    return value


def _number(value: Any, param: str, low: float, high: float, *, above: bool) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(param, value, "a number", "invalid_type")
    if not (low <= value <= high) or (above and value == low) or not math.isfinite(value):
        raise _wrong(
            param, value, f"a number {'above' if above else 'from'} {low:g} {'up ' if above else ''}to {high:g}"
        )
    return float(value)
