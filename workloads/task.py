"""What is asked and what comes back: the small frozen values that every layer shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

Row = TypeVar("Row", bound=tuple[Any, ...])


def fast_constructor(row: type[Row]) -> Callable[[tuple[Any, ...]], Row]:
    """Makes a NamedTuple from a tuple of all its fields in order; its own constructor is Python and takes twice as long."""
    return partial(tuple.__new__, row)


class Attachment(NamedTuple):
    """One image, audio clip or other modality of a task. `association` says how much the prompt needs it (0..1)."""

    name: str
    size_bytes: int
    tokens: int = 0
    association: float = 0.0


@dataclass(frozen=True, slots=True)
class Task:
    """A user's request before it has an arrival time.

    `family` groups tasks in reports (a dataset, a hardness label); `latent` holds what a modelled task
    knows about itself and no policy may see.
    """

    id: str
    prompt: str = ""
    answer: str | None = None
    family: str = "default"
    prompt_tokens: int = 0
    attachments: tuple[Attachment, ...] = ()
    features: Mapping[str, Any] = field(default_factory=dict)
    latent: Any = None


class Message(NamedTuple):
    """One turn of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


class ModelCall(NamedTuple):
    """One subtask, ready to be placed: the conversation so far and its size on the wire.

    `position` counts subtasks from 0. `upload_bytes` is the conversation's payload without attachments, whose
    bytes depend on which of them the placement uploads. `tool_s` is the time the agent's own tool ran just before
    this call. `prefix_blocks` are content hashes of the prompt's leading blocks, where a trace carries them.
    `branch` tells calls of parallel branches apart; it is 0 before, between and after them, and in a chain.
    `attachments` are those the model gets to see, whose tokens are in `prompt_tokens` then (`with_attachments`); None as long as
    nobody has placed the call.
    """

    task: Task
    position: int
    messages: tuple[Message, ...]
    prompt_tokens: int
    upload_bytes: int
    tool_s: float = 0.0
    max_tokens: int = 1024
    prefix_blocks: tuple[int, ...] = ()
    attachments: tuple[Attachment, ...] | None = None
    branch: int = 0

    @property
    def sent_bytes(self) -> int:
        """Bytes that travel to the model: the payload, and the attachments the call was placed with."""
        return self.upload_bytes + sum(attachment.size_bytes for attachment in self.attachments or ())


_call = fast_constructor(ModelCall)  # `_replace` takes three times as long, and every subtask with attachments asks


def with_attachments(call: ModelCall, attached: tuple[Attachment, ...]) -> ModelCall:
    """A call that was not placed yet, as a model sees it that gets these attachments: their tokens join the prompt."""
    tokens = call.prompt_tokens
    for attachment in attached:
        tokens += attachment.tokens
    return _call((
        call.task, call.position, call.messages, tokens, call.upload_bytes, call.tool_s, call.max_tokens, call.prefix_blocks, attached,
        call.branch,
    ))  # fmt: skip


class Completion(NamedTuple):
    """A model's answer. NaN means not measured.

    `tool_text` is what the environment answered to `text`, where the recording kept it, `score` the recorded grade
    of this answer if it ended the request. A completion in hand is its own handle: `result()` returns it.
    """

    model: str
    text: str
    prompt_tokens: int
    completion_tokens: int
    download_bytes: int
    cached_tokens: int = 0
    mean_logprob: float = math.nan
    prefill_s: float = math.nan
    decode_s: float = math.nan
    finish_reason: str = "stop"
    provenance: str = "exact"
    tool_text: str | None = None
    tool_s: float = 0.0
    score: float = math.nan

    def result(self) -> Completion:
        """The answer itself, so that replayed and modelled backends need no handle of their own."""
        return self


class Outcome(NamedTuple):
    """How a request ended: `score` in [0, 1] and the final answer; `tool_s` the time of a last tool call."""

    score: float
    answer: str = ""
    tool_s: float = 0.0


PROVENANCES = ("exact", "live", "modelled")


def worst_provenance(first: str, second: str) -> str:
    """The less certain of the two: a request is only as exact as its least exact subtask."""
    return first if PROVENANCES.index(first) >= PROVENANCES.index(second) else second
