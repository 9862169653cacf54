"""Answers in the shapes of OpenAI's chat API: documents, stream events, errors, and where an answer is cut at a stop sequence."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.gateway.openai_protocol import ApiError
from serve.generation import Generation
from workloads.errors import ModelUnavailable

OWNER = "isthmus"
DONE = b"data: [DONE]\n\n"
_FINISH_REASONS = ("stop", "length", "content_filter")
_LEAST_RETRY_S = 1


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer have in common: its id, the model that was asked for and when."""

    id: str
    model: str
    created_s: int

    @classmethod
    def new(cls, model: str) -> Head:
        """The head of a new answer."""
        return cls(f"chatcmpl-{uuid.uuid4().hex}", model, int(time.time()))

    def document(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        """An object of the API."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
            **more,
        }


def usage_of(generation: Generation) -> dict[str, Any]:
    """The `usage` of an answer."""
    return {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": generation.completion_tokens,
        "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.cached_tokens},
    }


def finish_reason(generation: Generation, *, cut: bool) -> str:
    """Why the text ends, in the API's words; `cut` says that a stop sequence ended it."""
    reason = generation.finish_reason
    return "stop" if cut or reason not in _FINISH_REASONS else reason


def completion(head: Head, text: str, reason: str, generation: Generation, placed: Mapping[str, Any]) -> dict[str, Any]:
    """A plain answer; `placed` is the extra field `isthmus`."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return head.document("chat.completion", [choice], usage=usage_of(generation), isthmus=dict(placed))


def chunk(head: Head, delta: Mapping[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    """One event of a streamed answer."""
    choice = {"index": 0, "delta": dict(delta), "logprobs": None, "finish_reason": reason}
    return head.document("chat.completion.chunk", [choice], **more)


def last_chunks(
    head: Head, reason: str, generation: Generation, placed: Mapping[str, Any], *, include_usage: bool
) -> list[dict[str, Any]]:
    """The events after the last piece of text; the very last one carries the extra field `isthmus`."""
    if not include_usage:
        return [chunk(head, {}, reason, isthmus=dict(placed))]
    usage = head.document("chat.completion.chunk", [], usage=usage_of(generation), isthmus=dict(placed))
    return [chunk(head, {}, reason, usage=None), usage]


def model_object(name: str, created_s: int) -> dict[str, Any]:
    """A model of GET /v1/models."""
    return {"id": name, "object": "model", "created": created_s, "owned_by": OWNER}


def encoded(document: Mapping[str, Any]) -> bytes:
    """A document as JSON in ASCII: a model's text may hold half a character, which UTF-8 cannot carry."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")


def event(document: Mapping[str, Any]) -> bytes:
    """A document as a server-sent event."""
    return b"data: " + encoded(document) + b"\n\n"


def finite(value: float) -> float | None:
    """The number, or None (JSON's null) where there is none."""
    return value if math.isfinite(value) else None


# --------------------------------------------------------------------------------------------------------------- errors

_UNAVAILABLE: Mapping[str, tuple[int, str, str]] = {
    "timeout": (504, "timeout", "timeout"),
    "rate-limited": (429, "rate_limit_error", "rate_limit_exceeded"),
    "own-limit": (429, "rate_limit_error", "rate_limit_exceeded"),
    "overloaded": (429, "rate_limit_error", "overloaded"),
    "budget": (429, "insufficient_quota", "insufficient_quota"),
    "refused": (502, "server_error", "upstream_refused"),
    "bad-answer": (502, "server_error", "bad_upstream_answer"),
    "prompt-too-long": (400, "invalid_request_error", "context_length_exceeded"),
}


def unavailable(failures: Mapping[str, ModelUnavailable]) -> ApiError:
    """The error after every tier that was tried has failed; the last one's reason decides the status.

    Only the reasons' words are told: details may name machines and addresses, which concern no client.
    """
    last = list(failures.values())[-1]
    status, kind, code = _UNAVAILABLE.get(reason_of(last), (503, "server_error", "unavailable"))
    told = ", ".join(f"{tier}: {reason_of(failure)}" for tier, failure in failures.items())
    wait_s = max(failure.retry_after_s for failure in failures.values())
    headers = (
        {"Retry-After": str(retry_after(wait_s))}
        if status == 503 or code in ("rate_limit_exceeded", "overloaded")
        else {}
    )
    return ApiError(status, f"No tier could answer ({told}).", kind=kind, code=code, headers=headers)


def reason_of(failure: ModelUnavailable) -> str:
    """The reason as one word with hyphens."""
    return failure.reason.replace("_", "-")


def retry_after(wait_s: float) -> int:
    """Whole seconds a client is asked to wait, at least one."""
    return max(_LEAST_RETRY_S, math.ceil(wait_s)) if math.isfinite(wait_s) else _LEAST_RETRY_S


# ------------------------------------------------------------------------------------------------------- stop sequences


class StopCutter:
    """Passes text on up to the stop sequence that is complete first, holding back only what may be the beginning of one.

    The models do not know stop sequences, so what a model writes after one is generated, counted in the usage and thrown away.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held, self.cut = stops, "", False

    def feed(self, piece: str) -> str:
        """The text that may go out now."""
        if self.cut:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.cut, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((self._overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back and turned out to be no stop sequence."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that is a beginning of `stop`."""
        return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
