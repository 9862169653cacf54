"""The protocol between a gateway and what decides for it: a model's name and one call in, a tier and its price out.

A chat call over HTTP is stateless. What the simulator knows of a request is found again in the conversation: the request is
the text up to the first user message, and the position is the number of assistant messages so far. Parallel branches of a request
cannot be found there: a client that forks tells them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from workloads.agent import FRAMING_BYTES, payload_bytes
from workloads.task import Completion, Message, ModelCall, Task

BYTES_PER_TOKEN = 4.0
"""Assumed where nobody counts tokens exactly."""
FIRST_UNNUMBERED = 1 << 32
"""Requests that a caller numbers lie below, those named after their text above."""
_NUMBERS = 1 << 52


class TierLoad(NamedTuple):
    """How busy a tier is: calls waiting, calls being answered, and how many it can answer at the same time."""

    waiting: int = 0
    active: int = 0
    capacity: int = 1


class Part(NamedTuple):
    """Which subtask of its request a call is, as a client tells it; None: the position is found in the conversation."""

    position: int | None = None
    branch: int = 0


IN_CHAIN = Part()
"""A subtask whose conversation tells where it stands."""


class Decision(NamedTuple):
    """Where a call goes and why; `fall_backs` are the tiers to try, in order, when that one cannot answer.

    `decision_s` is the time the decision took on the wall clock.
    """

    tier: str
    reason: str
    decision_s: float
    fall_backs: tuple[str, ...] = ()


class Charge(NamedTuple):
    """What an answered call cost ($, every item of the ledger but SLA penalties) and drew (J)."""

    cost_usd: float
    energy_j: float


class Placer(Protocol):
    """Decides for calls under the model names it offers. One thread at a time may call `place`, `review` or `charge`.

    It travels to the gateway's process by cloudpickle, so it holds plain data and policies.
    """

    def names(self) -> tuple[str, ...]:
        """The model names it lists, such as `isthmus/random@0.5`, `isthmus/all-llm` or a tier's own name."""
        ...

    def check(self, model_name: str) -> str:
        """The name under which calls to `model_name` are counted: itself, or for an unlisted value its family's.

        Raises InputError with the nearest names for one that is unknown, and with the range for a value outside it.
        """
        ...

    def prepare(self, model_name: str) -> None:
        """Make ready for `model_name`; may take seconds for a learned policy with an unlisted value."""
        ...

    def place(self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad]) -> Decision:
        """Decide where this call of request number `request` goes."""
        ...

    def reviews(self, model_name: str) -> bool:
        """Whether answers under this name are to be shown to `review` before anybody else sees them."""
        ...

    def review(
        self, model_name: str, request: int, call: ModelCall, load: Mapping[str, TierLoad], decision: Decision, completion: Completion
    ) -> Decision | None:  # fmt: skip
        """None takes the answer; a Decision has the call answered again there."""
        ...

    def charge(
        self, tier: str, completion: Completion, upload_bytes: float, download_bytes: float, prefill_s: float, decode_s: float,
        *, decision_s: float = 0.0, model_name: str = "", request: int = -1, position: int = 0,
    ) -> Charge:  # fmt: skip
        """What an answer cost. With `model_name` and `request`, the policy sees it in its next decision for the request."""
        ...


def call_of(
    messages: tuple[Message, ...],
    max_tokens: int = 1024,
    count_tokens: Callable[[tuple[Message, ...]], int] | None = None,
    part: Part = IN_CHAIN,
) -> ModelCall:
    """A conversation as the model call an agent would have made: one task for each beginning, positions counted from 0."""
    size = payload_bytes(messages)
    tokens = count_tokens(messages) if count_tokens else max(1, round((size - FRAMING_BYTES) / BYTES_PER_TOKEN))
    prompt = next((message.content for message in messages if message.role == "user"), "")
    counted = sum(message.role == "assistant" for message in messages)
    position = counted if part.position is None else part.position
    task = Task(f"request-{request_number(messages):x}", prompt, prompt_tokens=tokens if not counted else 0)
    return ModelCall(task, position, messages, tokens, size, max_tokens=max_tokens, branch=part.branch)


def request_number(messages: tuple[Message, ...]) -> int:
    """A number for the request a conversation belongs to: a hash of everything up to its first user message.

    Two users who ask the same question under the same system message share a number, so a coin falls the same way for both.
    """
    digest = hashlib.sha256()
    for role, content in messages:
        for part in (role, content):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
        if role == "user":
            break
    return FIRST_UNNUMBERED + int.from_bytes(digest.digest()[:8], "big") % (_NUMBERS - FIRST_UNNUMBERED)


def earlier_calls(call: ModelCall) -> Iterator[ModelCall]:
    """The calls of the same request that must have come before: the conversation as it was before each assistant message.

    None for a call in a branch, of which nobody knows where earlier ones stood.
    """
    if call.branch:
        return
    for index, message in enumerate(call.messages):
        if message.role == "assistant":
            before = call_of(call.messages[:index], call.max_tokens)
            yield before._replace(task=call.task)
